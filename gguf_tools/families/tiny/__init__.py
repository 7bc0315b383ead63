"""Random small checkpoints in the published layouts, for the conformance tests."""
