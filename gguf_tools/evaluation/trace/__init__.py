"""Where llama.cpp and the torch reference part ways: every named intermediate of both, point by point."""
