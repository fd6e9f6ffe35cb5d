"""Damaged and hostile inputs, made by a seeded random generator from (target, seed, index)."""
