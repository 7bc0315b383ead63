"""What a decoder can be, as facts: the spec and its rotary embedding. Knows no file and no torch."""
