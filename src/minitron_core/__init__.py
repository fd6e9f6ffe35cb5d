"""What every package stands on: errors, progress, GGUF files, whole files, hashes, CPU limits."""
