"""Checkpoints and GGUF models on the Hugging Face Hub."""
