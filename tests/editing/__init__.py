"""Tests of gguf_tools.editing: edits of a header, shards and merging."""
