"""The speed of models, measured as llama-bench measures it."""
