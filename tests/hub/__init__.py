"""A small Hugging Face hub on loopback, for tests that run the real `huggingface_hub` client against it.

`server.Hub` serves the routes that the client uses for reading and for uploading, from repositories in memory (`repositories`),
with the faults that a test asks for (`faults`), and records every request with the bytes that it sent. `client.use` points the
client of this process at it. `python -m tests.hub FOLDER` serves a folder, to try commands by hand.
"""
