"""The table of keys against llama.cpp's source and against gguf-py."""

from __future__ import annotations

import re

import gguf

from gguf_tools.editing.known_keys import ARCHITECTURE_KEYS, WHOLE_KEYS, KnownKey, known_key, near_keys
from gguf_tools.editing.values import field_type
from gguf_tools.formats.gguf import split
from tests.surgery.test_architecture_table import source

TYPES = {"uint32_t": "u32", "int": "i32", "int32_t": "i32", "uint64_t": "u64", "float": "f32", "bool": "bool"}


def every() -> dict[str, KnownKey]:
    return {**WHOLE_KEYS, **{f"arch.{name}": known for name, known in ARCHITECTURE_KEYS.items()}}


def test_every_type_has_a_name() -> None:
    for key, known in every().items():
        assert known.types, key
        for name in known.types:
            kind = field_type(name)
            assert kind is not None, key
            assert str(kind) == name


def test_keys_that_gguf_py_writes_are_known_with_their_types() -> None:
    """What gguf-py's writer puts into a file with its own functions has a type that the table accepts."""
    writer = gguf.GGUFWriter(path=None, arch="arch")
    writer.add_block_count(3)
    writer.add_context_length(3)
    writer.add_rope_freq_base(1e4)
    writer.add_head_count([1, 2, 3])
    writer.add_head_count_kv(1)
    writer.add_sliding_window_pattern([True, False, True])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_causal_attention(False)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_dimension_sections([1, 2, 3, 4])
    writer.add_name("name")
    writer.add_tags(["a"])
    writer.add_sampling_temp(0.5)
    writer.add_sampling_top_k(3)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, "base")
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 1])
    writer.add_token_scores([0.0, 1.0])
    writer.add_bos_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ x }}")
    writer.add_file_type(1)
    writer.add_feed_forward_length([1, 2, 3])
    writer.add_expert_weights_scale(1.5)
    names = {kind.value: kind.name.lower() for kind in gguf.GGUFValueType}
    short = {"uint": "u", "int": "i", "float": "f", "string": "str", "bool": "bool"}

    def spelled(number: int) -> str:
        word, bits = re.fullmatch(r"([a-z]+)(\d*)", names[number]).groups()  # type: ignore[union-attr]
        return short[word] + bits

    for key, value in writer.kv_data[0].items():
        known = known_key(key, "arch")
        assert known, key
        if value.type == gguf.GGUFValueType.ARRAY:
            sub = value.sub_type or gguf.GGUFValueType.get_type(value.value[0])
            assert f"[{spelled(sub)}]" in known.types, key
        else:
            assert spelled(value.type) in known.types, key


def test_a_key_of_another_architecture_is_not_read() -> None:
    assert known_key("llama.block_count", "llama") == KnownKey(("u32",))
    assert known_key("llama.block_count", "qwen3") is None
    assert near_keys("qwen3.block_cout", "qwen3") == ["qwen3.block_count"]
    assert near_keys("my.note", "qwen3") == []


def test_the_table_has_every_key_of_llama_cpp() -> None:
    names = set(re.findall(r'\{\s*LLM_KV_\w+,\s*"([^"]+)"\s*\}', source()["llama-arch.cpp"]))
    theirs = {name.replace("%s", "arch") for name in names} - set(split.KEYS)
    described = {"general." + name for name in ("doi", "uuid", "repo_url", "finetune", "basename", "organization")}
    ours = set(every())
    assert theirs <= ours
    extra = {key for key in ours - theirs - described if not key.startswith(("general.", "tokenizer.chat_templates"))}
    assert extra == set()


def test_the_types_are_those_of_the_variables() -> None:
    names = dict(re.findall(r'\{\s*(LLM_KV_\w+),\s*"([^"]+)"\s*\}', source()["llama-arch.cpp"]))
    header = source()["llama-hparams.h"]
    variables = {name: kind for kind, name in re.findall(r"^\s+(uint32_t|float|bool)\s+(\w+)\s*[=;]", header, re.M)}
    arrays = {name: kind for kind, name in re.findall(r"std::array<(\w+), \w+>\s+(\w+);", header)}
    found = 0
    for text in source().values():
        calls = re.findall(r"\b(get_key|get_key_or_arr|get_arr)\(\s*(LLM_KV_\w+),\s*hparams\.(\w+)", text)
        for how, key, variable in calls:
            known = every()[names[key].replace("%s", "arch")]
            kind = (variables if how == "get_key" else arrays).get(variable)
            if kind is None:
                continue
            found += 1
            letter = TYPES[kind]
            if how == "get_arr" or how == "get_key_or_arr":
                assert f"[{letter}]" in known.types, key
            else:
                assert letter in known.types, key
    assert found > 300
