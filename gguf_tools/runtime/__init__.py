"""Running llama.cpp in a child process."""
