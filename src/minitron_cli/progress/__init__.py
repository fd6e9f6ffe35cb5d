"""What a long job is doing: totals, and how a terminal, a log and a program read them."""
