"""What a job measured, as a page that a person reads."""
