"""GPT-2's byte table against the tokenizers library."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel

from gguf_tools.tokenizers.byte_level import byte_characters


def test_the_table_is_the_librarys() -> None:
    table = byte_characters()
    assert sorted(table) == sorted(ByteLevel.alphabet())
    library = ByteLevel(add_prefix_space=False, use_regex=False)
    for text in map(chr, [*range(0x250), *range(0x1000, 0xD800, 97), *range(0x10000, 0x110000, 4999)]):
        ((found, _),) = library.pre_tokenize_str(text)
        assert found == "".join(table[byte] for byte in text.encode())
