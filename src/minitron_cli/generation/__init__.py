"""The commands that generate text: one answer, or a conversation."""
