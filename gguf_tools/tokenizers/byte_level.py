"""The characters that stand for bytes in byte-level BPE (GPT-2's `bytes_to_unicode`)."""

from __future__ import annotations


def byte_characters() -> tuple[str, ...]:
    """The character for each of the 256 bytes (GPT-2's table; `unicode_byte_to_utf8_map` in llama.cpp)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))
