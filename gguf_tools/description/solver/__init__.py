"""Solves the choices that shapes leave open from golden logits: head, one-token prompts, attention pattern, continuous values."""
