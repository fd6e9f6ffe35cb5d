"""The tasks: each module here is one, named like its file, and defines it as TASK."""
