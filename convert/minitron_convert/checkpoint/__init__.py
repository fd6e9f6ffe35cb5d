"""Reading a checkpoint folder: its config, and tensors from safetensors and torch files."""
