"""The Python API of Minitron: what the commands call, for programs."""
