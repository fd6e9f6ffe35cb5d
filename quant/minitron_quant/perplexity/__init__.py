"""Measuring what a level costs: perplexity, and tables of it."""
