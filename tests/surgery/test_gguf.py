"""Surgery on GGUF files: bytes that move, numbers that are computed, and metadata that follows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools.errors import CheckpointError, InputError, OutputError, UnsupportedError
from gguf_tools.formats.gguf.header import Field, ValueType, array, boolean, i32, read_header, u32
from gguf_tools.formats.gguf.source import open_gguf
from surgery.algebra import Half, Original, origins
from surgery.architectures.base import Layers
from surgery.architectures.registry import architectures
from surgery.gguf.layers import open_layered
from surgery.gguf.positions import derived, placed
from surgery.gguf.rewrite import plan_gguf, write_plan
from surgery.recipe import parse_text
from surgery.sources import source_digest
from tests.oracle import convert, llama
from tests.surgery.surgery_files import as_architecture, operated, raw_tensors, split, with_donors, with_metadata
from tests.surgery.test_algebra import any_op
from tests.tiny_models import checkpoint, dense, hybrid, moe

LAYERS = 9


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of nine layers in F32."""
    folder = tmp_path_factory.mktemp("nine")
    config = dense(
        num_hidden_layers=LAYERS, hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1
    )
    return convert(checkpoint(folder / "hf", config), folder / "nine.gguf")


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model of four layers in Q4_K_M, which gives some of them more bits than others."""
    folder = tmp_path_factory.mktemp("quantized")
    config = dense(num_hidden_layers=8, hidden_size=256, intermediate_size=256, num_attention_heads=4, head_dim=64)
    return convert(checkpoint(folder / "hf", config), folder / "q4.gguf", "q4_k_m")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of experts in Q8_0."""
    folder = tmp_path_factory.mktemp("experts")
    config = moe(hidden_size=64, moe_intermediate_size=32)
    return convert(checkpoint(folder / "hf", config), folder / "moe.gguf", "q8_0")


@pytest.fixture(scope="module")
def mixed_kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hybrid in F32: linear, full, linear attention."""
    folder = tmp_path_factory.mktemp("hybrid")
    return convert(checkpoint(folder / "hf", hybrid()), folder / "hybrid.gguf")


RAW = [
    "swap(0:5)",
    "bridge(1:6)",
    "delete(2..4)",
    "repeat(1..3)",
    "reverse(0..7)",
    "cycle(1..6)",
    "swap(2:6, only=ffn)",
]


@pytest.mark.parametrize("recipe", [*RAW, "path(0..3, 2..7)", "move(7:0)", "triple(4)"])
def test_moved_layers_are_the_same_to_the_bit(quantized: Path, tmp_path: Path, recipe: str) -> None:
    out = operated(quantized, tmp_path / "out.gguf", recipe)
    before, after = raw_tensors(quantized), raw_tensors(out)
    stack = parse_text(recipe).apply(8)
    assert sum(name.startswith("blk.") for name in after) == 11 * len(stack)
    for name, tensor in after.items():
        if not name.startswith("blk."):
            assert tensor == before[name]
            continue
        _, number, rest = name.split(".", 2)
        half: Half = "ffn" if rest.startswith("ffn") else "attention"
        source = origins(stack[int(number)], half)[0].index
        assert tensor == before[f"blk.{source}.{rest}"]
    assert read_header(out).get("qwen3.block_count") == len(stack)


def test_blends_leave_every_other_tensor_as_it_was(quantized: Path, tmp_path: Path) -> None:
    out = operated(quantized, tmp_path / "out.gguf", "interpolate(0:7, 0.5) + scale(3@0.5)")
    before, after = raw_tensors(quantized), raw_tensors(out)
    old, new = open_gguf(quantized), open_gguf(out)
    for n in range(9):
        source = n if n < 2 else n - 1
        for name, tensor in before.items():
            if not name.startswith(f"blk.{source}."):
                continue
            rest = name.split(".", 2)[2]
            made = f"blk.{n}.{rest}"
            if n == 1:
                parts = [old.tensors[f"blk.{i}.{rest}"].array() for i in (0, 7)]
                got = new.tensors[made].array()
                kinds = {before[f"blk.{i}.{rest}"][0] for i in (0, 7)}
                assert after[made][0] in kinds
                error = np.square(got - np.mean(parts, axis=0)).mean() / np.square(got).mean()
                assert error < 0.01
            elif n == 3 and rest in ("attn_output.weight", "ffn_down.weight"):
                assert np.allclose(new.tensors[made].array(), old.tensors[name].array() / 2, atol=1e-2)
            else:
                assert after[made] == tensor
    (logits, *_), _ = llama(out)
    assert np.isfinite(logits).all()


def test_a_blend_of_two_types_takes_the_larger(quantized: Path, tmp_path: Path) -> None:
    before = raw_tensors(quantized)
    kinds = {n: before[f"blk.{n}.ffn_down.weight"][0] for n in range(8)}
    small = next(n for n in kinds if kinds[n] == "q4_K")
    large = next(n for n in kinds if kinds[n] == "q6_K")
    out = operated(quantized, tmp_path / "out.gguf", f"interpolate({small}:{large}, 0.5, replace={small})")
    assert raw_tensors(out)[f"blk.{small}.ffn_down.weight"][0] == "q6_K"


def test_splits_make_the_same_file(quantized: Path, tmp_path: Path) -> None:
    first, *others = split(quantized, quantized.with_name("part"), 3)
    whole = operated(quantized, tmp_path / "whole.gguf", "swap(0:5) + bridge(1:2)")
    joined = operated(first, tmp_path / "joined.gguf", "swap(0:5) + bridge(1:2)")
    digests = [read_header(path).get("tinyq.made_from.digest") for path in (whole, joined)]
    assert digests == [source_digest(quantized), source_digest(first)]

    def but_for_the_source(path: Path) -> bytes:
        return path.read_bytes().replace(digests[1].encode(), digests[0].encode())

    assert whole.read_bytes() == but_for_the_source(joined)
    from_last = operated(others[1], tmp_path / "from_last.gguf", "swap(0:5) + bridge(1:2)")
    assert whole.read_bytes() == but_for_the_source(from_last)
    renamed = first.rename(first.with_name("renamed.gguf"))
    with pytest.raises(CheckpointError, match="its name does not match"):
        open_layered(renamed)
    renamed.rename(first)
    others[0].write_bytes(others[1].read_bytes())
    with pytest.raises(CheckpointError, match="is named as shard 2 of 3"):
        open_layered(first)
    others[0].unlink()
    with pytest.raises(CheckpointError, match="missing"):
        open_layered(first)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=st.lists(any_op(), min_size=1, max_size=4).map(" + ".join))
def test_per_layer_metadata_always_has_the_new_length(nine: Path, tmp_path: Path, recipe: str) -> None:
    if "experts" in recipe:
        return
    arrays = {
        "qwen3.attention.head_count_kv": array(ValueType.UINT32, [1] * LAYERS),
        "qwen3.feed_forward_length": array(ValueType.UINT32, [32] * LAYERS),
    }
    file = with_metadata(nine, tmp_path / "arrays.gguf", arrays)
    # Donors have one number for all layers where the file has an array.
    donors = {name: nine for name in ("B", "other_1") if f"{name}:" in recipe}
    plan = plan_gguf(open_layered(file), with_donors(recipe, donors))
    count = len(plan.stack)
    header = plan.file.header
    for key in arrays:
        field = plan.changes.get(key, header.metadata.get(key))
        assert field is not None
        assert len(field.value) == count
    block_count = plan.changes.get("qwen3.block_count", header.metadata.get("qwen3.block_count"))
    assert block_count is not None
    assert block_count.value == count
    assert {int(name.split(".")[1]) for name, _ in plan.outputs if name.startswith("blk.")} == set(range(count))


def test_per_layer_metadata_follows_the_half_that_it_belongs_to(nine: Path, tmp_path: Path) -> None:
    arrays: dict[str, Field | None] = {
        "qwen3.attention.sliding_window_pattern": array(ValueType.BOOL, [n % 2 == 0 for n in range(LAYERS)]),
        "qwen3.feed_forward_length": array(ValueType.INT32, list(range(LAYERS))),
        "qwen3.rope.dimension_sections": array(ValueType.INT32, list(range(LAYERS))),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [0.0] * LAYERS),
    }
    file = with_metadata(nine, tmp_path / "arrays.gguf", arrays)
    out = read_header(operated(file, tmp_path / "out.gguf", "swap(0:3, only=ffn) + delete(1) + swap(0:1)"))
    assert out.get("qwen3.feed_forward_length") == (2, 3, 0, 4, 5, 6, 7, 8)
    assert out.get("qwen3.attention.sliding_window_pattern") == (True, True, False, True, False, True, False, True)
    assert out.get("qwen3.rope.dimension_sections") == tuple(range(LAYERS))
    assert len(out.get("tokenizer.ggml.scores")) == LAYERS
    with pytest.raises(InputError, match=r"feed_forward_length 0, 1 has feed_forward_length 1"):
        operated(file, tmp_path / "no.gguf", "interpolate(0:1, 0.5, only=ffn)")


def test_mtp_blocks_stay_last(nine: Path, tmp_path: Path) -> None:
    arrays: dict[str, Field | None] = {
        "qwen3.nextn_predict_layers": u32(2),
        "qwen3.feed_forward_length": array(ValueType.INT32, list(range(LAYERS))),
        "qwen3.attention.head_count_kv": array(ValueType.INT32, list(range(LAYERS - 2))),
    }
    file = with_metadata(nine, tmp_path / "mtp.gguf", arrays)
    out = operated(file, tmp_path / "out.gguf", "delete(1) + duplicate(0) + bridge(0:5) + move(0:6)")
    before, after, header = raw_tensors(file), raw_tensors(out), read_header(out)
    assert header.get("qwen3.block_count") == 10
    assert header.get("qwen3.feed_forward_length") == (0, 2, 3, 4, 5, 0, 0, 6, 7, 8)
    assert header.get("qwen3.attention.head_count_kv") == (0, 2, 3, 4, 5, 0, 0, 6)
    for n in (7, 8):
        assert after[f"blk.{n + 1}.attn_q.weight"] == before[f"blk.{n}.attn_q.weight"]
    with pytest.raises(InputError, match="7 layers at this point, 0 to 6"):
        operated(file, tmp_path / "no.gguf", "swap(0:7)")
    with pytest.raises(CheckpointError, match="nextn_predict_layers"):
        open_layered(with_metadata(nine, tmp_path / "all.gguf", {"qwen3.nextn_predict_layers": u32(LAYERS)}))


def test_experts_move_as_bytes_and_the_router_with_them(experts: Path, tmp_path: Path) -> None:
    out = operated(experts, tmp_path / "out.gguf", "drop-experts(0..2:1) + swap-experts(1:0:2)")
    before, after = raw_tensors(experts), raw_tensors(out)
    assert read_header(out).get("qwen3moe.expert_count") == 3
    for layer, order in ((0, (0, 2, 3)), (1, (3, 2, 0)), (2, (0, 2, 3))):
        for name in ("ffn_gate_exps", "ffn_down_exps", "ffn_gate_inp"):
            kind, shape, old = before[f"blk.{layer}.{name}.weight"]
            step = len(old) // 4
            want = b"".join(old[step * n : step * (n + 1)] for n in order)
            assert after[f"blk.{layer}.{name}.weight"] == (kind, (3, *shape[1:]), want)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("drop-experts(1:0)", "layer 1 would have 3 experts and layer 0 4"),
        ("drop-experts(0..2:0, 1, 2)", "1 of 4 experts would remain, but 2 are selected"),
        ("drop-experts(0..2:0, 1, 2, 3)", "would have no experts left"),
        ("drop-experts(0:4)", "expert 4 does not exist in layer 0; its experts are 0 to 3"),
        ("swap-experts(0:1:7)", "expert 7 does not exist"),
    ],
)
def test_experts_that_cannot_go_are_refused(experts: Path, tmp_path: Path, recipe: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        operated(experts, tmp_path / "no.gguf", recipe)
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_was_implied_is_written_out(mixed_kinds: Path, tmp_path: Path) -> None:
    key = "qwen3next.attention.recurrent_layers"
    # Layers D A D are what an interval of 2 says.
    implied = with_metadata(
        mixed_kinds, tmp_path / "implied.gguf", {key: None, "qwen3next.full_attention_interval": u32(2)}
    )
    same = operated(implied, tmp_path / "same.gguf", "swap(0:2)")
    assert read_header(same).get(key) is None
    moved = operated(implied, tmp_path / "moved.gguf", "swap(0:1)")
    assert read_header(moved).get(key) == (False, True, True)
    stated = operated(mixed_kinds, tmp_path / "stated.gguf", "swap(0:1)")
    assert raw_tensors(moved) == raw_tensors(stated)
    assert all(np.array_equal(a, b) for a, b in zip(llama(moved)[0], llama(stated)[0], strict=True))


def test_a_hybrid_needs_both_kinds(mixed_kinds: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="without full attention"):
        operated(mixed_kinds, tmp_path / "no.gguf", "delete(1)")
    with pytest.raises(UnsupportedError, match="without linear attention"):
        operated(mixed_kinds, tmp_path / "no.gguf", "path(1, 1)")


def test_decays_are_blended_in_the_sources_space(mixed_kinds: Path, tmp_path: Path) -> None:
    out = operated(mixed_kinds, tmp_path / "out.gguf", "interpolate(0:2, 0.25, replace=0)")
    a, b = (open_gguf(mixed_kinds).tensors[f"blk.{n}.ssm_a"].array() for n in (0, 2))
    got = open_gguf(out).tensors["blk.0.ssm_a"].array()
    assert np.allclose(got, -np.exp(0.75 * np.log(-a) + 0.25 * np.log(-b)), rtol=1e-6)


def test_a_rewrite_that_blends_do_not_pass_through_is_named(nine: Path, tmp_path: Path) -> None:
    names = array(ValueType.STRING, ["zero attention gate", "value scale folded into the values"])
    file = with_metadata(nine, tmp_path / "rewritten.gguf", {"tinyq.rewrites": names})
    with pytest.raises(InputError, match="rewrite 'value scale folded into the values'"):
        operated(file, tmp_path / "no.gguf", "merge(0:1)")
    operated(file, tmp_path / "moved.gguf", "swap(0:1) + scale(1@0.5)")


def test_a_rewrite_of_a_later_version_is_refused(nine: Path, tmp_path: Path) -> None:
    names = array(ValueType.STRING, ["output written out", "heads joined"])
    file = with_metadata(nine, tmp_path / "newer.gguf", {"tinyq.rewrites": names})
    with pytest.raises(InputError, match="rewrite 'heads joined'"):
        operated(file, tmp_path / "no.gguf", "merge(0:1)")


def test_slerp_is_refused_where_only_linear_blends_pass(nine: Path, tmp_path: Path) -> None:
    names = array(ValueType.STRING, ["bias on the attention output"])
    file = with_metadata(nine, tmp_path / "biased.gguf", {"tinyq.rewrites": names})
    operated(file, tmp_path / "merged.gguf", "merge(0:1)")
    with pytest.raises(InputError, match="after which a slerp blend of layers gives another result"):
        operated(file, tmp_path / "no.gguf", "merge(0:1, method=slerp)")


def test_surgery_on_surgery_appends(nine: Path, tmp_path: Path) -> None:
    once = operated(nine, tmp_path / "once.gguf", "swap(0:1)")
    twice = operated(once, tmp_path / "twice.gguf", "bridge(0:1)")
    assert read_header(once).get("tinyq.surgery") == "swap(0:1)"
    assert read_header(twice).get("tinyq.surgery") == "swap(0:1) + bridge(0:1)"
    digest = read_header(nine).get("tinyq.source.digest")
    assert digest
    assert read_header(twice).get("tinyq.source.digest") == digest


def test_the_sources_path_is_seen_from_the_new_folder(nine: Path, tmp_path: Path) -> None:
    out = operated(nine, tmp_path / "out.gguf", "swap(0:1)")
    path = read_header(out).get("tinyq.source.path")
    assert (out.parent / path).resolve() == (nine.parent / "hf").resolve()


def test_the_source_is_not_overwritten(nine: Path, tmp_path: Path) -> None:
    before = nine.read_bytes()
    plan = plan_gguf(open_layered(nine), parse_text("swap(0:1)"))
    with pytest.raises(OutputError, match="is also an input of this command"):
        write_plan(plan, nine, force=True)
    link = tmp_path / "link.gguf"
    link.symlink_to(nine)
    with pytest.raises(OutputError, match="is also an input of this command"):
        write_plan(plan, link, force=True)
    assert nine.read_bytes() == before


def test_copying_without_the_kernels_help_gives_the_same(
    quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    quick = operated(quantized, tmp_path / "quick.gguf", "swap(0:5)")
    monkeypatch.setattr("os.copy_file_range", refuse)
    slow = operated(quantized, tmp_path / "slow.gguf", "swap(0:5)")
    assert quick.read_bytes() == slow.read_bytes()


@pytest.mark.parametrize(
    ("arch", "keys", "wanted", "result"),
    [
        ("qwen3next", {}, [True, True, True, False], {}),
        ("qwen3next", {}, [True, False], {"attention.recurrent_layers": [True, False]}),
        ("gemma3", {"attention.sliding_window": 512}, [True] * 5 + [False, True], {}),
        (
            "gemma3",
            {"attention.sliding_window": 512},
            [False, True],
            {"attention.sliding_window_pattern": [False, True]},
        ),
        ("laguna", {"attention.sliding_window": 512}, [False, True, True, True, False], {}),
        ("glm4moe", {"leading_dense_block_count": 1}, [True, False], {}),
        ("glm4moe", {"leading_dense_block_count": 1}, [True, True, False], {"leading_dense_block_count": 2}),
        (
            "glm4moe",
            {"leading_dense_block_count": 1},
            [False, True],
            "decides by its index whether a layer has a dense",
        ),
        ("smollm3", {}, [False, False, False, True], {}),
        (
            "smollm3",
            {},
            [False, True, False, False],
            "whether a layer has no rope: the layer that would become number 1 does",
        ),
        ("llama4", {"interleave_moe_layer_step": 2}, [True, False], "whether a layer has"),
        ("gemma3n", {}, [True], "shares keys and values"),
    ],
)
def test_what_a_layers_place_says(arch: str, keys: dict[str, int], wanted: list[bool], result: object) -> None:
    architecture = architectures()[arch]
    count = len(wanted)

    def layers(changes: dict[str, Field], get: Callable[[str], object] = keys.get) -> Layers:
        def found(key: str) -> object:
            return changes[key].value if key in changes else get(key)

        return Layers(get=found, names=[()] * count, origins=list(map(Original, range(count))))

    before = derived(architecture, layers({}))
    asked = {p: tuple(wanted) for p in before if p.what == SUBJECT[arch]}
    if isinstance(result, str):
        with pytest.raises(UnsupportedError, match=result):
            placed(architecture, asked, layers, 0)
        return
    made = placed(architecture, asked, layers, 0)
    assert {key: list(f.value) if isinstance(f.value, tuple) else f.value for key, f in made.items()} == result


SUBJECT = {
    "qwen3next": "is recurrent",
    "gemma3": "has a sliding window",
    "laguna": "has a sliding window",
    "glm4moe": "has a dense feed-forward",
    "smollm3": "has no rope",
    "llama4": "has experts",
    "gemma3n": "shares keys and values",
}
"""The property that a case is about, by architecture."""


def test_a_table_of_leading_dense_layers_follows(nine: Path, tmp_path: Path) -> None:
    key = "deepseek.leading_dense_block_count"
    renamed = as_architecture(nine, tmp_path / "deepseek.gguf", "deepseek")
    file = with_metadata(renamed, tmp_path / "lead.gguf", {key: u32(2)})
    assert read_header(operated(file, tmp_path / "a.gguf", "duplicate(0)")).get(key) == 3
    assert read_header(operated(file, tmp_path / "b.gguf", "delete(0..1)")).get(key) == 0
    assert read_header(operated(file, tmp_path / "c.gguf", "reverse(2..8)")).get(key) == 2
    with pytest.raises(UnsupportedError, match="would become number"):
        operated(file, tmp_path / "no.gguf", "move(0:8)")
    with pytest.raises(InputError, match="has a dense feed-forward"):
        operated(file, tmp_path / "no.gguf", "merge(1:2)")


def test_a_single_truth_for_all_layers_needs_no_array(mixed_kinds: Path, tmp_path: Path) -> None:
    key = "qwen3next.attention.recurrent_layers"
    file = with_metadata(mixed_kinds, tmp_path / "one.gguf", {key: boolean(True)})
    assert key not in plan_gguf(open_layered(file), parse_text("swap(0:1)")).changes


def test_files_without_layers_are_refused(nine: Path, tmp_path: Path) -> None:
    for key, value in (("qwen3.block_count", None), ("qwen3.block_count", i32(-1)), ("general.architecture", None)):
        with pytest.raises(CheckpointError, match=r"block_count|architecture"):
            open_layered(with_metadata(nine, tmp_path / "bad.gguf", {key: value}))
    with pytest.raises(CheckpointError, match="is beyond the 3 blocks"):
        open_layered(with_metadata(nine, tmp_path / "few.gguf", {"qwen3.block_count": u32(3)}))


def test_a_broken_header_is_refused(nine: Path, tmp_path: Path) -> None:
    whole = nine.read_bytes()
    end = read_header(nine).data_offset
    path = tmp_path / "broken.gguf"
    for cut in [*range(0, 64, 7), *range(64, end, 97), len(whole) - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            read_header(path)
    huge = bytearray(whole)
    huge[8:16] = (1 << 62).to_bytes(8, "little")
    path.write_bytes(huge)
    with pytest.raises(CheckpointError):
        read_header(path)
