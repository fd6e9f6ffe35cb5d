"""Options of commands: those that several share, and what a shell offers for them."""
