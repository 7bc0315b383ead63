"""`--prove`: what llama.cpp computes in each layer of the result, held against the source's own layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from gguf_tools import operate
from gguf_tools.errors import InputError, LlamaError, UnsupportedError
from gguf_tools.formats.gguf.header import read_header, u32
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.gguf.layers import LayeredFile, open_layered
from surgery.gguf.proof import Proved, SurgeryProof
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.recipe import parse_text
from tests.surgery import tiny_architectures as tiny
from tests.surgery.surgery_files import as_architecture, with_metadata
from tests.surgery.tiny_architectures import Tiny
from tests.tiny_gguf import Array

TOKENS = tuple(range(3, 27))


def proved(file: LayeredFile, out: Path, recipe: str) -> Proved:
    """What the proof finds."""
    plan = plan_gguf(file, parse_text(recipe))
    proof = SurgeryProof(plan, demanded=True)
    write_plan(plan, out, prove=proof)
    assert proof.proved is not None
    return proof.proved


def unaware(path: Path) -> LayeredFile:
    """The file as if nothing in it depended on place, number or tensors outside: what the table is there to prevent."""
    file = open_layered(path)
    bare = replace(file.architecture, properties=(), slices=(), kinds="", sliding=False)
    return replace(file, architecture=bare, properties={})


@pytest.mark.parametrize(
    ("model", "recipe", "layers"),
    [
        (tiny.llama, "swap(0:2) + duplicate(3)", 5),
        (lambda: tiny.gemma3(7), "move(5:0)", 7),
        (tiny.gemma4, "swap(0:2) + delete(3) + duplicate(0)", 6),
        (lambda: tiny.gemma4(6, shared=2), "swap(0:1) + delete(5)", 5),
        (tiny.gemma3n, "swap(3:7) + delete(22)", 23),
        (lambda: tiny.smallthinker(6), "swap(0:4)", 6),
        (lambda: tiny.cohere2(6), "reverse(0..5)", 6),
        (lambda: tiny.qwen3moe(3), "swap-experts(1:0:3) + swap(0:2)", 3),
        (tiny.qwen3next, "reverse(0..3) + duplicate(1)", 5),
    ],
)
def test_copied_layers_give_the_same_bits(model: Callable[[], Tiny], recipe: str, layers: int, tmp_path: Path) -> None:
    base = model().write(tmp_path / "base.gguf")
    found = proved(open_layered(base), tmp_path / "out.gguf", recipe)
    assert found == Proved(layers=layers, worst=0.0, logits=0.0, n_tokens=found.n_tokens)
    assert found.method == "layers"
    assert found.n_tokens == (72 if "smallthinker" in str(read_header(base).architecture) else 24)


@pytest.mark.parametrize(
    ("model", "recipe", "layer"),
    [
        (lambda: tiny.smallthinker(6), "swap(0:1)", "layer 0 of the result .* source's layer 1"),
        (lambda: tiny.smollm3(6), "move(3:0)", "layer 0 of the result .* source's layer 3"),
        (lambda: tiny.gemma3(7), "move(5:0)", "layer 0 of the result .* source's layer 5"),
        (lambda: tiny.gemma3(62, size=16), "delete(61)", "layer 0 of the result .* source's layer 0"),
        (tiny.gemma4, "swap(1:3)", "layer 1 of the result .* source's layer 3"),
        (tiny.gemma3n, "swap(9:10)", "layer 9 of the result"),
        (lambda: tiny.minicpm(4), "delete(3)", "layer 0 of the result"),
        (lambda: tiny.exaone4(63), "duplicate(62)", "layer 0 of the result"),
    ],
)
def test_what_the_table_refuses_would_be_found(
    model: Callable[[], Tiny], recipe: str, layer: str, tmp_path: Path
) -> None:
    """With the table's knowledge taken away, the wrong file is made, and the proof names the first layer that is wrong."""
    base = model().write(tmp_path / "base.gguf")
    with pytest.raises(UnsupportedError, match=f"{layer}"):
        proved(unaware(base), tmp_path / "out.gguf", recipe)
    assert not (tmp_path / "out.gguf").exists()


def test_a_result_that_does_not_run_is_refused(tmp_path: Path) -> None:
    base = tiny.command_r(64).write(tmp_path / "base.gguf")
    with pytest.raises(LlamaError, match="the result does not run, so nothing was written"):
        proved(unaware(base), tmp_path / "out.gguf", "delete(3)")
    assert not (tmp_path / "out.gguf").exists()


def test_computed_layers_are_held_against_the_reference(tmp_path: Path) -> None:
    base = tiny.llama().write(tmp_path / "base.gguf")
    found = proved(open_layered(base), tmp_path / "out.gguf", "interpolate(0:2, 0.3) + swap(0:3)")
    assert found.method == "layers and reference"
    assert found.layers == 4
    assert found.reference is not None
    assert found.reference <= 1e-9
    plan = plan_gguf(open_layered(base), parse_text("interpolate(0:2, 0.3)"))
    other = plan_gguf(open_layered(base), parse_text("interpolate(0:2, 0.4)"))
    with pytest.raises(UnsupportedError, match="differ from the torch reference's after the same"):
        write_plan(other, tmp_path / "no.gguf", prove=SurgeryProof(plan))


@pytest.mark.parametrize(
    ("model", "recipe"),
    [
        (tiny.llama, "scale(1@0.7) + swap(0:2, only=ffn)"),
        (lambda: tiny.gemma3(7), "scale(0..1@0.7) + swap(1:3, only=attention)"),
        (lambda: tiny.smallthinker(6), "scale(0@0.5, only=ffn)"),
        (lambda: tiny.qwen3moe(3), "scale(0@0) + swap(0:2, only=ffn)"),
        (tiny.qwen3next, "scale(0..3@0.5)"),
        (lambda: tiny.exaone4(6), "scale(2@-1.3, only=ffn) + duplicate(2)"),
    ],
)
def test_scaled_and_exchanged_halves_need_no_reference(model: Callable[[], Tiny], recipe: str, tmp_path: Path) -> None:
    base = model().write(tmp_path / "base.gguf")
    found = proved(open_layered(base), tmp_path / "out.gguf", recipe)
    assert found.method == "layers"
    assert found.layers == len(plan_gguf(open_layered(base), parse_text(recipe)).stack)
    assert found.worst <= 1e-12
    assert not found.unproved


@pytest.mark.parametrize(
    ("asked", "made", "said"),
    [
        ("scale(1@0.5)", "scale(1@0.6)", "the attention of layer 1 of the result"),
        ("scale(1@0.5)", "scale(1@0.5, only=attention)", "the feed-forward of layer 1 of the result"),
        ("swap(0:2, only=ffn)", "swap(0:3, only=ffn)", "the feed-forward of layer 0 of the result .* layer 2"),
        ("swap(0:2)", "swap(0:2, only=ffn)", "layer 0 of the result .* layer 2"),
        ("scale(0@0)", "scale(0@0.001)", "the attention of layer 0"),
    ],
)
def test_another_factor_or_half_is_found(asked: str, made: str, said: str, tmp_path: Path) -> None:
    base = tiny.llama().write(tmp_path / "base.gguf")
    proof = SurgeryProof(plan_gguf(open_layered(base), parse_text(asked)))
    with pytest.raises(UnsupportedError, match=said):
        write_plan(plan_gguf(open_layered(base), parse_text(made)), tmp_path / "no.gguf", prove=proof)
    assert not (tmp_path / "no.gguf").exists()


def test_a_feed_forward_that_reads_what_enters_the_layer_is_not_parted_from_it(tmp_path: Path) -> None:
    base = tiny.smallthinker(6).write(tmp_path / "base.gguf")
    plan = plan_gguf(open_layered(base), parse_text("swap(1:2, only=ffn)"))
    proof = SurgeryProof(plan)
    write_plan(plan, tmp_path / "out.gguf", prove=proof)
    assert proof.proved is not None
    assert proof.proved.layers == 4
    assert proof.proved.unproved[0].startswith("layers 1, 2, which are computed")


def test_what_cannot_be_proved_is_said_or_refused(tmp_path: Path) -> None:
    base = tiny.gemma4().write(tmp_path / "base.gguf")
    result = operate(base, tmp_path / "out.gguf", "scale(0..5@0.5)", threads=1)
    assert result.proof is not None
    assert result.proof.method == "none"
    assert result.proof.unproved[0].startswith(
        "layers 0, 1, 2, 3, 4, 5, which are computed: there is no torch reference"
    )
    with pytest.raises(UnsupportedError, match=r"cannot be proved: .*; --no-prove writes it without"):
        operate(base, tmp_path / "no.gguf", "scale(0..5@0.5)", prove=True)
    assert not (tmp_path / "no.gguf").exists()
    assert operate(base, tmp_path / "un.gguf", "swap(0:1)", prove=False).proof is None
    broken = with_metadata(base, tmp_path / "broken.gguf", {"gemma4.attention.head_count": u32(7)})
    told = operate(broken, tmp_path / "b.gguf", "swap(0:1)", threads=1).proof
    assert told is not None
    assert "llama.cpp does not run the source" in told.unproved[0]
    told = operate(broken, tmp_path / "c.gguf", "scale(0@0.5)", threads=1).proof
    assert told is not None
    assert [line.partition(" (")[0] for line in told.unproved] == [
        "llama.cpp does not run the source as a language model"
    ]
    for recipe in ("swap(0:1)", "scale(0@0.5)"):
        with pytest.raises(UnsupportedError, match="cannot be proved"):
            operate(broken, tmp_path / "no.gguf", recipe, prove=True)


def test_in_place_is_taken_back_where_the_proof_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.smollm3(6).write(tmp_path / "base.gguf")
    assert operate(base, None, "swap(0:1)", in_place=True, threads=1).proof is not None
    before = base.read_bytes()
    monkeypatch.setattr("gguf_tools.api.operate.open_layered", lambda path, **_: unaware(path))
    with pytest.raises(UnsupportedError, match=r"layer 2 of the result"):
        operate(base, None, "swap(2:3)", in_place=True, threads=1)
    assert base.read_bytes() == before


def test_an_assumption_of_the_user_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An architecture that the table lacks and llama.cpp knows: its places mean something, which only the proof can tell."""
    from surgery.architectures.registry import architectures

    base = tiny.smollm3(6).write(tmp_path / "base.gguf")
    fewer = MappingProxyType({name: row for name, row in architectures().items() if name != "smollm3"})
    monkeypatch.setattr("surgery.gguf.layers.architectures", lambda: fewer)
    with pytest.raises(UnsupportedError, match="smollm3 is not in the table"):
        operate(base, tmp_path / "out.gguf", "swap(0:1)")
    operate(base, tmp_path / "out.gguf", "swap(0:1)", assume_independent_layers=True)
    with pytest.raises(UnsupportedError, match=r"differs? (in|from)"):
        operate(base, tmp_path / "no.gguf", "swap(2:3)", assume_independent_layers=True)


def test_a_folder_takes_no_proof(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        operate(tmp_path, tmp_path / "out", "swap(0:1)", prove=True)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain decoder."""
    return tiny.llama().write(tmp_path_factory.mktemp("running") / "llama.gguf")


def test_a_replaced_tensor_is_what_follows_is_computed_from(running: Path) -> None:
    """Zeros in place of what leaves the second layer, and then of the third, give what a zero stream gives."""
    with Runtime(running, RuntimeOptions(threads=1)) as runtime:
        names = [node.name for node in runtime.nodes(TOKENS)]
        leaves = [names.index(f"l_out-{n}") for n in range(4)]
        found, logits = runtime.exchange(TOKENS, leaves, {})
        again, same = runtime.exchange(TOKENS, leaves, {leaves[1]: found[1]})
        assert np.array_equal(logits, same)
        assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
        assert np.array_equal(runtime.logits([TOKENS])[0], logits)
        zero: Array = np.zeros_like(found[1])
        (read, third), dark = runtime.exchange(TOKENS, [leaves[1], leaves[2]], {leaves[1]: zero})
        assert np.array_equal(read, found[1])  # a node is read before it is replaced
        assert not np.any(third)  # a layer of norms and products makes nothing of nothing
        assert not np.any(dark)


def test_what_cannot_be_replaced_is_refused(running: Path) -> None:
    with Runtime(running, RuntimeOptions(threads=1)) as runtime:
        place = [node.name for node in runtime.nodes(TOKENS)].index("l_out-0")
        with pytest.raises(LlamaError, match=r"l_out-0 has 1536 numbers, not 3"):
            runtime.exchange(TOKENS, [], {place: np.zeros(3, np.float32)})
        with pytest.raises(InputError, match=r"needs 600 tokens, but the context"):
            runtime.nodes(tuple(range(100)) * 6)
        assert np.isfinite(runtime.logits([TOKENS])[0]).all()


def test_layers_that_depend_on_more_than_what_enters_them_are_not_compared(tmp_path: Path) -> None:
    base = as_architecture(tiny.llama(3).write(tmp_path / "plain.gguf"), tmp_path / "kimi.gguf", "kimi-k3")
    plan = plan_gguf(open_layered(base), parse_text("duplicate(2)"))
    with pytest.raises(UnsupportedError, match="its layers mix what earlier ones banked"):
        SurgeryProof(plan, demanded=True)
