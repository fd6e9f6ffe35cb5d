"""Importance matrices: what a calibration text tells about the inputs of each weight."""
