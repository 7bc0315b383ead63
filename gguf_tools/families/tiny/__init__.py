"""Small random checkpoints in the published layouts, for the conformance tests."""
