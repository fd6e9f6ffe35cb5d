"""What every package uses: errors, progress, GGUF files, atomic files, hashes, CPU limits."""
