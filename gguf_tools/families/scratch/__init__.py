"""Families of models trained from scratch, in the layouts of their own training scripts."""
