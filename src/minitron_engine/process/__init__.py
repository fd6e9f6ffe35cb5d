"""The process around llama.cpp: interrupts, aborts, fatal signals, the alignment of malloc."""
