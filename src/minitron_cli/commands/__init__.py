"""One module per command: parse, build the settings, call one library function, show the result."""
