"""What a model needs in memory, how many layers go to the GPUs, and on which of them."""
