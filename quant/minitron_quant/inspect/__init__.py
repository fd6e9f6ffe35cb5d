"""What a file holds, how two differ, and whether it is still what it was."""
