"""What `minitron quantize` asks of the size dial, error feedback, and a checkpoint's header."""
