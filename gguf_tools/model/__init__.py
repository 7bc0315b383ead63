"""The specification of a decoder and of its rotary embedding. Independent of file formats and of torch."""
