"""Sensitive work on this process: interrupts, aborts, fatal signals, malloc, address space."""
