"""How much memory a model needs, and how many of its layers fit on the GPUs."""
