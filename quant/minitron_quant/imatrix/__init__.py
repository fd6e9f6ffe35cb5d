"""Importance matrices: statistics of the inputs of each weight on a calibration text."""
