"""Surgery on llama.cpp's architectures: the model that was asked for, as llama.cpp runs it, or a refusal.

What must come out is written by `Tiny.write` with the layers in their new order, without surgery; both files run in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.formats.gguf.header import ValueType, array, read_header, string, u32
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from surgery.gguf.in_place import plan_in_place
from surgery.gguf.layers import open_layered
from surgery.gguf.rewrite import plan_gguf
from surgery.recipe import parse_text
from tests.oracle import Logits, nmse
from tests.surgery import tiny_architectures as tiny
from tests.surgery.surgery_files import as_architecture, operated, raw_tensors, with_metadata
from tests.surgery.tiny_architectures import Tiny
from tests.tiny_gguf import Array

PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79), (7, 200, 11))


def logits(path: Path) -> Logits:
    with Runtime(path, RuntimeOptions(threads=1)) as runtime:
        return [part.copy() for part in runtime.logits(PROMPTS)]


def swapped(count: int, a: int, b: int) -> list[int]:
    order = list(range(count))
    order[a], order[b] = b, a
    return order


def without(count: int, *left: int) -> list[int]:
    return [n for n in range(count) if n not in left]


GEMMA3 = [(n + 1) % 6 != 0 for n in range(7)]
DONE: list[tuple[str, Callable[[], Tiny], str, list[int]]] = [
    ("llama", tiny.llama, "swap(0:2) + duplicate(3)", [2, 1, 0, 3, 3]),
    ("slices, swap", tiny.gemma4, "swap(0:2)", swapped(6, 0, 2)),
    ("slices, delete", tiny.gemma4, "delete(1)", without(6, 1)),
    ("slices, copies", tiny.gemma4, "path(0..3, 2..3, 5)", [0, 1, 2, 3, 2, 3, 5]),
    ("shared keys, swap", lambda: tiny.gemma4(6, shared=2), "swap(0:1) + swap(4:5)", [1, 0, 2, 3, 5, 4]),
    ("slices of gemma3n", tiny.gemma3n, "swap(3:7) + delete(22)", [*swapped(22, 3, 7), 23]),
    ("62 layers stay", lambda: tiny.gemma3(62, size=16, pattern=[n % 3 == 0 for n in range(62)]), "swap(3:7)", swapped(62, 3, 7)),
    ("62 layers, one scale", lambda: tiny.gemma3(62, pattern=[n % 3 == 0 for n in range(62)]), "delete(3)", without(62, 3)),
    ("a long pattern", lambda: tiny.gemma3(4, pattern=[True, True, False, True, True, False]), "swap(1:2)", [0, 2, 1, 3]),
    ("a long pattern, delete", lambda: tiny.gemma3(4, pattern=[True, True, False, True, False, False]), "delete(0)", [1, 2, 3]),
    ("no rope, one class", lambda: tiny.smallthinker(6), "swap(0:4)", swapped(6, 0, 4)),
    ("no rope, the others", lambda: tiny.smallthinker(6), "swap(1:3) + delete(5)", [0, 3, 2, 1, 4]),
    ("no window", lambda: tiny.smallthinker(5, window=0), "delete(0)", without(5, 0)),
    ("smollm3", lambda: tiny.smollm3(6), "swap(0:5) + duplicate(5)", [5, 1, 2, 3, 4, 0, 0]),
    ("command-r of 64", lambda: tiny.command_r(64), "reverse(0..63)", list(range(63, -1, -1))),
    ("baichuan", lambda: tiny.baichuan(4), "delete(2)", [0, 1, 3]),
    ("exaone4 of 6", lambda: tiny.exaone4(6), "delete(2)", [0, 1, 3, 4, 5]),
]  # fmt: skip


@pytest.mark.parametrize(("model", "recipe", "order"), [case[1:] for case in DONE], ids=[case[0] for case in DONE])
def test_whole_layers_come_out_as_if_written_so(
    model: Callable[[], Tiny], recipe: str, order: list[int], tmp_path: Path
) -> None:
    made = model()
    base = made.write(tmp_path / "base.gguf")
    want = made.write(tmp_path / "want.gguf", order)
    got = operated(base, tmp_path / "got.gguf", recipe)
    assert raw_tensors(got) == raw_tensors(want)
    assert nmse(logits(got), logits(want)) == 0.0


def test_an_implied_pattern_follows(tmp_path: Path) -> None:
    base = tiny.gemma3(7).write(tmp_path / "base.gguf")
    got = operated(base, tmp_path / "got.gguf", "move(5:0)")
    order = [5, 0, 1, 2, 3, 4, 6]
    want = tiny.gemma3(7, pattern=GEMMA3).write(tmp_path / "want.gguf", order)
    assert nmse(logits(got), logits(want)) == 0.0


def test_a_pattern_shorter_than_the_layers_is_written_out(tmp_path: Path) -> None:
    """llama.cpp takes the entries that lack for layers without a window."""
    made = tiny.gemma3(4, pattern=[True, True, False, False])
    key = "gemma3.attention.sliding_window_pattern"
    short = {key: array(ValueType.BOOL, [True, True, False])}
    base = with_metadata(made.write(tmp_path / "whole.gguf"), tmp_path / "base.gguf", short)
    got = operated(base, tmp_path / "got.gguf", "swap(0:3)")
    assert read_header(got).get(key) == (False, True, False, True)
    assert nmse(logits(got), logits(made.write(tmp_path / "want.gguf", swapped(4, 0, 3)))) == 0.0


def test_windows_take_rope_with_them(tmp_path: Path) -> None:
    """Cohere 2 rotates in the layers with a window only, so that the array of windows says both."""
    made = tiny.cohere2(6)
    made.arrays["attention.sliding_window_pattern"] = [n % 4 != 3 for n in range(6)]
    want = made.write(tmp_path / "want.gguf", swapped(6, 2, 3))
    got = operated(tiny.cohere2(6).write(tmp_path / "base.gguf"), tmp_path / "got.gguf", "swap(2:3)")
    assert nmse(logits(got), logits(want)) == 0.0


def test_a_scale_by_the_number_of_layers_is_written_out(tmp_path: Path) -> None:
    made = tiny.minicpm(4)
    scale = float(np.float32(1.4) / np.sqrt(np.float32(4)))
    want = made.write(tmp_path / "want.gguf", [0, 2, 3], residual_scale=scale)
    got = operated(made.write(tmp_path / "base.gguf"), tmp_path / "got.gguf", "delete(1)")
    assert read_header(got).get("minicpm.residual_scale") == scale
    assert nmse(logits(got), logits(want)) == 0.0


def test_shared_layers_at_the_end_may_go(tmp_path: Path) -> None:
    made = tiny.gemma4(6, shared=2)
    want = made.write(tmp_path / "want.gguf", without(6, 5), **{"attention.shared_kv_layers": 1})
    got = operated(made.write(tmp_path / "base.gguf"), tmp_path / "got.gguf", "delete(5)")
    assert nmse(logits(got), logits(want)) == 0.0


PLACE = "by its index whether a layer"
REFUSED: list[tuple[Callable[[], Tiny], str, str]] = [
    (lambda: tiny.gemma3(62, size=16), "delete(3)", r"gemma3 decides the attention scale by the number .*0\.1767.*0\.25"),
    (lambda: tiny.gemma3(61, size=16), "duplicate(3)", r"decides the attention scale"),
    (lambda: tiny.gemma2(46, 16), "delete(45)", "gemma2 decides the attention scale"),
    (lambda: tiny.command_r(64), "delete(3)", "command-r decides whether a layer has norms of queries and keys by the number"),
    (lambda: tiny.command_r(63), "duplicate(3)", "command-r decides whether a layer has norms"),
    (lambda: tiny.exaone4(63), "duplicate(3)", "exaone4 decides the attention by the number of layers"),
    (lambda: tiny.exaone4(64), "delete(3)", "exaone4 decides the attention by the number of layers"),
    (lambda: tiny.baichuan(33), "delete(3)", "the position encoding by the number of layers: it is none .* would be RoPE"),
    (lambda: tiny.smallthinker(6), "swap(0:1)", f"{PLACE} has no rope: the layer that would become number 0 does not, but would"),
    (lambda: tiny.smallthinker(6), "delete(0)", f"{PLACE} has no rope"),
    (lambda: tiny.smallthinker(5), "delete(3)", f"{PLACE} has no rope"),
    (lambda: tiny.smollm3(6), "move(3:0)", f"{PLACE} has no rope"),
    (tiny.gemma3n, "swap(9:10)", f"{PLACE} has sparse activations"),
    (tiny.gemma3n, "delete(12)", f"{PLACE} shares keys and values"),
    (tiny.gemma3n, "swap(18:17)", r"the layer whose keys and values are read .* it is layer 18 .* would be layer 17"),
    (lambda: tiny.gemma4(6, shared=2), "swap(2:3)", r"the layer whose keys and values are read"),
    (lambda: tiny.gemma4(6, shared=2), "swap(1:5)", f"{PLACE} shares keys and values"),
    (tiny.gemma4, "delete(0..1) + delete(1..2) + delete(0)", "does not run a model without layers with a sliding window"),
    (tiny.gemma4, "merge(0:1)", "per_layer_token_embd.weight holds a slice for each layer, and layer 0 would come from several"),
    (tiny.gemma4, "swap(0:1, only=ffn)", "layer 0 has inp_gate.weight, which belongs to neither half"),
    (tiny.gemma3n, "scale(3@0.5)", "layer 3 has altup_correct_scale.weight, with which .* more than add"),
    (lambda: tiny.cohere2(6), "swap(0:1, only=ffn)", "the halves of this cohere2 layer share a norm"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "recipe", "said"), REFUSED, ids=[f"{n}: {case[1]}" for n, case in enumerate(REFUSED)]
)
def test_what_would_be_another_model_is_refused(
    model: Callable[[], Tiny], recipe: str, said: str, tmp_path: Path
) -> None:
    base = model().write(tmp_path / "base.gguf")
    with pytest.raises(UnsupportedError, match=said):
        operated(base, tmp_path / "no.gguf", recipe)
    assert not (tmp_path / "no.gguf").exists()


def test_in_place_does_not_move_slices(tmp_path: Path) -> None:
    base = tiny.gemma4().write(tmp_path / "base.gguf")
    with pytest.raises(InputError, match=r"per_layer_token_embd\.weight has a slice per layer.*; give OUT"):
        plan_in_place(plan_gguf(open_layered(base), parse_text("swap(0:2)")))


@pytest.mark.parametrize(("name", "axis"), [("per_layer_token_embd", 1), ("per_layer_model_proj", 0)])
def test_what_is_not_finite_in_a_slice_has_its_place_in_the_source(tmp_path: Path, name: str, axis: int) -> None:
    made = tiny.gemma4()
    part = (made.rows if axis == 0 else made.columns)[f"{name}.weight"][1]
    width = part.shape[axis]
    part[4, 2] = np.nan
    base = made.write(tmp_path / "base.gguf")
    row, column = (width + 4, 2) if axis == 0 else (4, width + 2)
    with pytest.raises(InputError, match=rf"{name}\.weight holds nan at row {row}, column {column} "):
        operated(base, tmp_path / "no.gguf", "swap(0:2)")


def test_a_layer_scaled_to_nothing_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    """Every branch counts: attention, feed-forward, per-layer input, and the factor on the whole stream."""
    made = tiny.gemma4()
    got = operated(made.write(tmp_path / "base.gguf"), tmp_path / "got.gguf", "scale(0@0)")
    want = made.write(tmp_path / "want.gguf", without(6, 0))
    assert nmse(logits(got), logits(want)) < 1e-11


def test_half_of_what_a_layer_adds_counts_its_factor_on_the_stream(tmp_path: Path) -> None:
    """A layer that adds nothing but its factor g gives g·x; scaled by 1/2 it gives x + (g - 1)·x / 2."""

    def silent(n: int, layer: dict[str, Array]) -> dict[str, Array]:
        return {k: np.zeros_like(v) if n == 0 and "post_" in k else v for k, v in layer.items()}

    def halved(n: int, layer: dict[str, Array]) -> dict[str, Array]:
        found = silent(n, layer)
        return {
            k: np.float32(0.5) * (1 + v) if n == 0 and k == "layer_output_scale.weight" else v for k, v in found.items()
        }

    made = tiny.gemma4()
    got = operated(made.changed(silent).write(tmp_path / "base.gguf"), tmp_path / "got.gguf", "scale(0@0.5)")
    want = made.changed(halved).write(tmp_path / "want.gguf")
    assert nmse(logits(got), logits(want)) < 1e-12
    name = "blk.0.post_ffw_norm.weight"
    full = operated(made.write(tmp_path / "full.gguf"), tmp_path / "scaled.gguf", "scale(0@0.5)")
    g = float(made.layers[0]["layer_output_scale.weight"][0])
    values = np.frombuffer(raw_tensors(full)[name][2], np.float32)
    assert np.allclose(values, made.layers[0]["post_ffw_norm.weight"] * 0.5 * g / (1 + 0.5 * (g - 1)), rtol=1e-6)


def experts_taken(made: Tiny, order: list[int]) -> Tiny:
    """The experts in another order, the router's inputs left as they are."""

    def change(_: int, layer: dict[str, Array]) -> dict[str, Array]:
        by_expert = ("ffn_gate_inp.weight", "exps.weight", "ffn_down_exps.scale")
        return {k: np.ascontiguousarray(v[order]) if k.endswith(by_expert) else v for k, v in layer.items()}

    return made.changed(change)


@pytest.mark.parametrize("model", [tiny.gemma4_experts, tiny.qwen3moe])
def test_experts_go_with_all_that_is_theirs(model: Callable[[], Tiny], tmp_path: Path) -> None:
    made = model()
    base = made.write(tmp_path / "base.gguf")
    got = operated(base, tmp_path / "got.gguf", "drop-experts(0..2:1)")
    want = experts_taken(made, [0, 2, 3]).write(tmp_path / "want.gguf", expert_count=3)
    assert raw_tensors(got) == raw_tensors(want)
    assert nmse(logits(got), logits(want)) == 0.0
    exchanged = operated(base, tmp_path / "exchanged.gguf", "swap-experts(1:0:3)")
    assert nmse(logits(exchanged), logits(base)) < 1e-11


def deepseek4(folder: Path) -> Path:
    """Two layers that route by token ids before two with a bias; tensors that llama.cpp needs besides are left out."""
    rng = np.random.default_rng(0)
    made = tiny.make("deepseek4", 4, tiny.FFN_NORM | tiny.MOE, keys=tiny.MOE_KEYS | {"hash_layer_count": 2})
    for n, layer in enumerate(made.layers):
        if n < 2:
            layer["ffn_gate_tid2eid.weight"] = rng.integers(0, 4, (260, 2)).astype(np.int32)
        else:
            layer["exp_probs_b.bias"] = np.zeros(4, np.float32)
    return made.write(folder / "deepseek4.gguf")


def test_layers_that_route_by_token_ids_stay_in_front(tmp_path: Path) -> None:
    base = deepseek4(tmp_path)
    assert (
        read_header(operated(base, tmp_path / "a.gguf", "swap(0:1) + swap(2:3)")).get("deepseek4.hash_layer_count") == 2
    )
    assert read_header(operated(base, tmp_path / "b.gguf", "delete(0)")).get("deepseek4.hash_layer_count") == 1
    with pytest.raises(UnsupportedError, match="whether a layer routes by token ids"):
        operated(base, tmp_path / "no.gguf", "swap(1:2)")
    for recipe in ("drop-experts(0..3:1)", "swap-experts(0:1:2)"):
        with pytest.raises(UnsupportedError, match=r"ffn_gate_tid2eid\.weight, which holds the experts' numbers"):
            operated(base, tmp_path / "no.gguf", recipe)
    operated(base, tmp_path / "c.gguf", "swap-experts(2:1:2)")


def test_experts_stay_in_their_groups(tmp_path: Path) -> None:
    base = tiny.qwen3moe().write(tmp_path / "base.gguf", expert_group_count=2, expert_group_used_count=1)
    for recipe in ("drop-experts(0..2:0,1)", "swap-experts(0:1:2)", "drop-experts(0..2:1)"):
        with pytest.raises(InputError, match="its 4 experts are 2 groups of 2"):
            operated(base, tmp_path / "no.gguf", recipe)
    operated(base, tmp_path / "a.gguf", "swap-experts(0:2:3)")


def renamed(arch: str, folder: Path, **keys: int) -> Path:
    """A plain decoder under another name, to see what its header says of place."""
    made = as_architecture(tiny.llama(6).write(folder / "plain.gguf"), folder / f"{arch}.gguf", arch)
    fields = {f"{arch}.{key}": u32(value) for key, value in keys.items()}
    return with_metadata(made, folder / f"{arch}-keys.gguf", fields)


@pytest.mark.parametrize(
    ("arch", "keys", "recipe", "said"),
    [
        ("kimi-k3", {"attn_res.block_size": 2}, "swap(0:1)", "whether a layer banks the residual stream"),
        ("rwkv7", {}, "swap(0:1)", "whether a layer gives its values to all others"),
        ("rwkv6", {"rescale_every_n_layers": 2}, "swap(0:3)", "how often the residual stream was halved"),
        ("minimax-01", {}, "swap(0:1)", "the decay factor"),
        ("deepseek2", {}, "repeat(0..5x5)", "the query projection by the number of layers"),
        ("minicpm3", {}, "delete(0)", "the scale of what a layer adds by the number of layers"),
        ("nomic-bert-moe", {"moe_every_n_layers": 2}, "swap(0:1)", "whether a layer has experts"),
        ("ernie4_5-moe", {"interleave_moe_layer_step": 2}, "swap(0:1)", "whether a layer has experts"),
        ("minimax-m3", {"leading_dense_block_count": 1}, "swap(0:1)", "whether a layer has a dense feed-forward"),
    ],
)  # fmt: skip
def test_place_and_count_of_other_architectures(
    arch: str, keys: dict[str, int], recipe: str, said: str, tmp_path: Path
) -> None:
    base = renamed(arch, tmp_path, **keys)
    file = open_layered(base)
    if "repeat" in recipe:
        recipe = "repeat(0..5x4) + duplicate(0) + duplicate(0)"  # 26 layers
    with pytest.raises(UnsupportedError, match=said):
        plan_gguf(file, parse_text(recipe))


def test_an_indexer_is_used_from_the_same_layer(tmp_path: Path) -> None:
    base = with_metadata(
        renamed("glm-dsa", tmp_path),
        tmp_path / "types.gguf",
        {"glm-dsa.attention.indexer.types": array(ValueType.UINT32, [1, 1, 0, 0, 1, 0])},
    )
    changes = plan_gguf(open_layered(base), parse_text("swap(2:3) + delete(5)")).changes
    assert changes["glm-dsa.attention.indexer.types"] == array(ValueType.UINT32, [1, 1, 0, 0, 1])
    for recipe in ("swap(0:1)", "move(2:1)", "delete(1)"):
        with pytest.raises(UnsupportedError, match=r"the layer whose indexer is used .* it is layer 1"):
            plan_gguf(open_layered(base), parse_text(recipe))


def test_a_grafted_layer_uses_the_indexer_of_its_own_model(tmp_path: Path) -> None:
    """The donor's third layer uses what its second chose; the same file's second layer is not that."""
    types = {"glm-dsa.attention.indexer.types": array(ValueType.UINT32, [1, 1, 0, 0, 1, 0])}
    files = [with_metadata(renamed("glm-dsa", tmp_path), tmp_path / f"{name}.gguf", types) for name in "ab"]
    operated(files[0], tmp_path / "yes.gguf", "graft(B:0..5@6)", {"B": files[1]})
    with pytest.raises(
        UnsupportedError, match=r"the layer whose indexer is used .* it is layer B:1 .* would be layer 1"
    ):
        operated(files[0], tmp_path / "no.gguf", "graft(B:3@3)", {"B": files[1]})


def test_n_gram_embeddings_follow_their_layer(tmp_path: Path) -> None:
    base = with_metadata(
        renamed("qwen4exp", tmp_path), tmp_path / "ple.gguf", {"qwen4exp.ple.layers": array(ValueType.UINT32, [1])}
    )
    changes = plan_gguf(open_layered(base), parse_text("delete(0)")).changes
    assert changes["qwen4exp.ple.layers"] == array(ValueType.UINT32, [0])
    with pytest.raises(UnsupportedError, match="whether a layer has n-gram embeddings"):
        plan_gguf(open_layered(base), parse_text("duplicate(1)"))


def test_an_architecture_that_is_not_known_is_refused_unless_the_user_answers_for_it(tmp_path: Path) -> None:
    base = as_architecture(tiny.llama(3).write(tmp_path / "plain.gguf"), tmp_path / "new.gguf", "brandnew")
    with pytest.raises(UnsupportedError, match=r"brandnew is not in the table .* --assume-independent-layers"):
        open_layered(base)
    plan = plan_gguf(open_layered(base, assume_independent=True), parse_text("swap(0:1)"))
    assert any("assumed to be independent of their place" in note for note in plan.notes)
    notes = plan.changes["tinyq.notes"]
    assert notes is not None
    assert notes.value == plan.notes
    with pytest.raises(InputError, match="cannot record --assume-independent-layers; give OUT"):
        plan_in_place(plan)


@pytest.mark.parametrize(
    ("arch", "said"), [("t5", r"enc\.blk\.N"), ("gptj", "no graph"), ("eagle3", "drafts"), ("hrm_text", "runs")]
)
def test_architectures_without_surgery_say_why(arch: str, said: str, tmp_path: Path) -> None:
    base = as_architecture(tiny.llama(3).write(tmp_path / "plain.gguf"), tmp_path / "other.gguf", arch)
    with pytest.raises(UnsupportedError, match=said):
        open_layered(base, assume_independent=True)


@pytest.mark.parametrize("recipe", ["scale(0@0.5)", "drop-experts(0..2:1)", "swap(0:1, only=ffn)"])
def test_ops_that_must_know_every_tensor_refuse_unknown_ones(recipe: str, tmp_path: Path) -> None:
    made = tiny.qwen3moe().changed(
        lambda n, layer: layer | ({"ffn_odd.weight": np.ones(4, np.float32)} if n == 0 else {})
    )
    base = made.write(tmp_path / "base.gguf")
    with pytest.raises(UnsupportedError, match=r"layer 0 has ffn_odd\.weight, which no layer of llama\.cpp's qwen3moe"):
        operated(base, tmp_path / "no.gguf", recipe)
    assert "blk.1.ffn_odd.weight" in raw_tensors(operated(base, tmp_path / "yes.gguf", "swap(0:1)"))


def test_a_name_alone_decides_the_row(tmp_path: Path) -> None:
    base = tiny.llama(3).write(tmp_path / "base.gguf")
    named = with_metadata(base, tmp_path / "named.gguf", {"general.name": string("gemma3")})
    assert open_layered(named).architecture.name == "llama"
