"""Hugging Face checkpoints of the Llama and Nemotron families made into GGUF files."""
