"""Tasks: questions with answers to choose from or to write, scored on a GGUF file."""
