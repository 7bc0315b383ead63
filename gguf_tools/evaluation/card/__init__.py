"""The card suite: the scores that are reported on a model card."""
