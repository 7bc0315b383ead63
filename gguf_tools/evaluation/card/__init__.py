"""The card suite: a model scored as its card reports it."""
