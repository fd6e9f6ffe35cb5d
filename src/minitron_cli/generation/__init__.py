"""One answer, or a conversation."""
