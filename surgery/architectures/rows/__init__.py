"""One row for each architecture of llama.cpp: dense, with experts, hybrid or recurrent, and those without surgery."""
