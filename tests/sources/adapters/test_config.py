"""adapter_config.json: what is read, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from gguf_tools.errors import InputError
from gguf_tools.sources.adapters.adapter import GivenAdapter, open_adapter, parse_adapter
from gguf_tools.sources.adapters.config import READ, REFUSED, WITHOUT_EFFECT, AdapterConfig, read_config
from gguf_tools.sources.checkpoint import open_checkpoint


def read(folder: Path, **values: Any) -> AdapterConfig:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **values}))
    return read_config(folder)


def test_every_key_of_peft_is_known() -> None:
    known = READ | WITHOUT_EFFECT | set(REFUSED)
    assert {field.name for field in dataclasses.fields(LoraConfig)} <= known | {"peft_type"}


def test_the_default_config_of_peft_is_read(tmp_path: Path) -> None:
    LoraConfig(r=4, lora_alpha=3, target_modules=["q_proj"]).save_pretrained(str(tmp_path))
    config = read_config(tmp_path)
    assert config.scale_of("model.layers.0.q_proj") == 0.75
    assert {config.dora, config.rslora, config.transposed, config.tied} == {False}


def test_patterns_match_as_in_peft(tmp_path: Path) -> None:
    from peft.utils.other import get_pattern_key

    keys = [
        "q_proj",
        "^model.layers.1.k_proj",
        r"layers\.[02]\.o_proj",
        "(up|down)_proj",
        r"model.layers.\d+.gate_proj",
    ]
    config = read(tmp_path, r=1, lora_alpha=1, rank_pattern={key: n + 2 for n, key in enumerate(keys)})
    for name in ("q", "k", "o", "up", "down", "gate", "xq"):
        for layer in range(3):
            module = f"model.layers.{layer}.{name}_proj"
            key = get_pattern_key(keys, module)
            assert config.rank_of(module) == (keys.index(key) + 2 if key in keys else 1)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type is LoHa, which is not supported; expected LORA"),
        ({"peft_type": "IA3"}, "peft_type is IA3"),
        ({"peft_type": "PROMPT_TUNING"}, "peft_type is prompt tuning"),
        ({"peft_type": ["LORA"]}, "peft_type is ['LORA']"),
        ({"alora_invocation_tokens": [1, 2]}, "Activated LoRA"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "replicated layers"),
        ({"use_qalora": True}, "QALoRA"),
        ({"megatron_config": {"a": 1}}, "Megatron"),
        ({"made_up": 3}, "made_up is 3 (a setting that tinyq does not know, which may change the weights)"),
        ({"init_lora_weights": "pissa_niter_4"}, "which changes the base's weights too"),
        ({"init_lora_weights": "olora"}, "which changes the base's weights too"),
        ({"r": 0}, "r is 0; expected an integer of at least 1"),
        ({"r": True}, "r is True; expected an integer"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000"),
        ({"use_dora": 1}, "use_dora is 1; expected true or false"),
        ({"rank_pattern": [1]}, "rank_pattern is [1]; expected an object"),
        ({"rank_pattern": {"q": "x"}}, "rank_pattern.q is 'x'"),
        ({"rank_pattern": {"(a+)+": 2}}, "expected the name of a module, or a simple regular expression"),
        ({"alpha_pattern": {".*.*.*q": 2}}, "simple regular expression"),
        ({"alpha_pattern": {"(q": 2}}, "simple regular expression"),
        ({"trainable_token_indices": {"embed_tokens": [1, -1]}}, "expected token ids"),
        ({"trainable_token_indices": 5}, "expected token ids"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        read(tmp_path, **values)
    assert str(tmp_path / "adapter_config.json") in str(caught.value)


def test_unknown_keys_that_say_nothing_are_accepted(tmp_path: Path) -> None:
    read(tmp_path, made_up=None, another=False, third=[], fourth={})


def test_the_scale_is_what_stands_after_the_last_at(tmp_path: Path) -> None:
    assert parse_adapter("/a/b") == GivenAdapter(Path("/a/b"))
    assert parse_adapter("/a/b@0.5") == GivenAdapter(Path("/a/b"), 0.5)
    assert parse_adapter("/a@b/c") == GivenAdapter(Path("/a@b/c"))
    assert parse_adapter("/a@b@-1e-1") == GivenAdapter(Path("/a@b"), -0.1)
    (tmp_path / "v@2").mkdir()
    assert parse_adapter(str(tmp_path / "v@2")).scale == 1.0
    for text in ("a@nan", "a@inf", "a@1e9", ""):
        with pytest.raises(InputError, match="--lora"):
            parse_adapter(text)


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_adapter(GivenAdapter(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        open_adapter(GivenAdapter(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        open_adapter(GivenAdapter(tmp_path))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x01")
    with pytest.raises(InputError, match="too few for a safetensors file"):
        open_adapter(GivenAdapter(tmp_path))


def test_an_adapter_as_a_source_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
    with pytest.raises(InputError, match=r"trained on org/base, not a model; .* --lora .* --base BASE"):
        open_checkpoint(tmp_path)
