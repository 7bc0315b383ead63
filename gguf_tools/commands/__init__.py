"""One module per command: it parses the options, calls the public API, and prints the result."""
