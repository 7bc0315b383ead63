"""Two runs of benchmarks or of the card suite, item by item: what is different, and what survives a correction for many tests."""
