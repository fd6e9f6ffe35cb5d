"""The output types of a conversion; help texts and job files read them without loading it."""

# auto: the checkpoint's own 16-bit type
OUTTYPES = ("auto", "f32", "f16", "bf16", "q8_0")
