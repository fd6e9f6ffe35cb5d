"""What the Hub gets: a model card with measured numbers, and the files."""
