"""What a description says is what the model is, and an error in it names the line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gguf_tools import convert, evaluate, load_model
from gguf_tools.description.build import build, problems
from gguf_tools.description.describe import find
from gguf_tools.description.schema import Source
from gguf_tools.description.toml import parse_description
from gguf_tools.description.write import Described, description_text
from gguf_tools.errors import InputError, UnsupportedError
from gguf_tools.families.registry import load_model as built
from gguf_tools.families.registry import own_families
from gguf_tools.families.tiny.writing import write_tiny_tokenizer
from gguf_tools.model.spec import Attention, Model
from gguf_tools.sources.checkpoint import Checkpoint
from gguf_tools.tensors.base import InMemory, same_values
from gguf_tools.tensors.views import interleave_rows
from tests.conftest import Ran
from tests.description.scrambled import nonsense, write_weights
from tests.made_checkpoints import Made


def flat(model: Model) -> Checkpoint:
    """The model's tensors as a checkpoint whose names are the roles."""
    tensors = dict(model.tensors)
    for n, layer in enumerate(model.layers):
        tensors |= {f"block.{n}.{role}": tensor for role, tensor in layer.tensors.items()}
    return Checkpoint(path=Path("made"), config={}, tensors=tensors, weight_files=(), metadata={})


def sources(model: Model) -> tuple[list[Source], list[Source]]:
    """A source for each role of `flat`."""
    inside = dict.fromkeys(role for layer in model.layers for role in layer.tensors)
    return [Source(role, (role,)) for role in model.tensors], [
        Source(f"block.{{n}}.{role}", (role,)) for role in inside
    ]


CASES = [(family, variant) for family in own_families() for variant, e in family.variants.items() if e.target]


@pytest.mark.parametrize(("family", "variant"), CASES, ids=[f"{family.name}-{v}" for family, v in CASES])
def test_every_family_can_be_described(family: object, variant: str, made: Made) -> None:
    model = built(made(family.name, variant))  # type: ignore[attr-defined]
    outside, inside = sources(model)
    text = description_text(Described(spec=model.spec, outside=outside, inside=inside))
    found = build(parse_description(text, Path("model.toml")), flat(model))
    assert found.spec == model.spec
    for ours, theirs in zip(found.layers, model.layers, strict=True):
        assert ours.tensors.keys() == theirs.tensors.keys()
        assert all(same_values(tensor, theirs.tensors[role]) for role, tensor in ours.tensors.items())


LLAMA = """\
unused = ["junk"]

[model]
context_length = 256

[norm]
eps = 1e-5

[layer.mixer]
kind = "Attention"
heads = 4
kv_heads = 2
head_dim = 16

[layer.mixer.rope]
theta = 10000.0
dims = 16

[layer.feed_forward]
kind = "GatedMLP"

[tensors]
embedding = "emb"
output = "out"
output_norm = "last"

[tensors.layer]
mixer_norm = "b.{n}.n1"
ffn_norm = "b.{n}.n2"
"attn.q + attn.k + attn.v" = { tensor = "b.{n}.qkv", blocks = 2 }
attn.o = { tensor = "b.{n}.o", transposed = true }
"ffn.up + ffn.gate" = "b.{n}.up_gate"
ffn.down = "b.{n}.down"
"""


def fused(model: Model) -> Checkpoint:
    """A Llama's tensors fused and transposed as `LLAMA` describes."""
    own = {"emb": model.tensors["embedding"], "out": model.tensors["output"], "last": model.tensors["output_norm"]}
    tensors = {**own, "junk": InMemory(np.zeros(3, np.float32))}
    for n, layer in enumerate(model.layers):
        part = layer.tensors
        qkv = interleave_rows([part[f"attn.{name}"] for name in "qkv"], 2)
        up_gate = interleave_rows([part["ffn.up"], part["ffn.gate"]], 1)
        transposed = InMemory(np.ascontiguousarray(part["attn.o"].array().T))
        named = {"n1": part["mixer_norm"], "n2": part["ffn_norm"], "down": part["ffn.down"]}
        named |= {"qkv": qkv, "up_gate": up_gate, "o": transposed}
        tensors |= {f"b.{n}.{name}": tensor for name, tensor in named.items()}
    return Checkpoint(path=Path("made"), config={}, tensors=tensors, weight_files=(), metadata={})


def test_fused_grouped_and_transposed_matrices(made: Made) -> None:
    model = built(made("llama", "plain"))
    found = build(parse_description(LLAMA, Path("model.toml")), fused(model))
    assert found.spec == model.spec
    for ours, theirs in zip(found.layers, model.layers, strict=True):
        assert all(same_values(tensor, theirs.tensors[role]) for role, tensor in ours.tensors.items())


def test_a_name_cannot_add_lines_to_the_description(made: Made) -> None:
    model = built(made("qwen3", "plain"))
    outside, inside = sources(model)
    described = Described(spec=model.spec, outside=outside, inside=inside, head=("a\n[norm]\nb\udcff\x1b[2J",))
    text = description_text(described)
    assert text.splitlines()[0] == "# a\\n[norm]\\nb\\udcff\\x1b[2J"
    assert build(parse_description(text, Path("model.toml")), flat(model)).spec == model.spec


def test_a_name_that_toml_cannot_hold_is_refused(made: Made) -> None:
    checkpoint = flat(built(made("qwen3", "plain")))
    broken = replace(checkpoint, tensors={**checkpoint.tensors, "x\ud800": InMemory(np.zeros(3, np.float32))})
    with pytest.raises(
        UnsupportedError, match=r"the name of tensor x\\ud800 is not valid Unicode, which TOML cannot hold"
    ):
        find(broken)


@pytest.mark.parametrize("form", ["each", "stacked", "transposed", "fused"])
def test_forms_of_experts(made: Made, form: str) -> None:
    model = built(made("qwen3-moe", "plain"))
    outside, inside = sources(model)
    checkpoint = flat(model)
    tensors = dict(checkpoint.tensors)
    for n, layer in enumerate(model.layers):
        arrays = {name: layer.tensors[f"moe.{name}"].array() for name in ("gate", "up", "down")}
        for name in arrays:
            del tensors[f"block.{n}.moe.{name}"]
        if form == "fused":
            arrays["gate_up"] = np.concatenate([arrays.pop("gate"), arrays.pop("up")], axis=1)
        for name, array in arrays.items():
            if form == "each":
                tensors |= {f"block.{n}.e{e}.{name}": InMemory(part) for e, part in enumerate(array)}
            else:
                moved = array.swapaxes(1, 2) if form == "transposed" else array
                tensors[f"block.{n}.{name}"] = InMemory(np.ascontiguousarray(moved))
    kept = [source for source in inside if source.roles[0] not in ("moe.gate", "moe.up", "moe.down")]
    where = "block.{n}.e{e}." if form == "each" else "block.{n}."
    names = {"gate_up": ("moe.gate", "moe.up"), "down": ("moe.down",)} if form == "fused" else {}
    names = names or {name: (f"moe.{name}",) for name in ("gate", "up", "down")}
    more = [Source(f"{where}{name}", roles, transposed=form == "transposed") for name, roles in names.items()]
    text = description_text(Described(spec=model.spec, outside=outside, inside=[*kept, *more]))
    found = build(parse_description(text, Path("model.toml")), replace(checkpoint, tensors=tensors))
    assert found.spec == model.spec
    for ours, theirs in zip(found.layers, model.layers, strict=True):
        assert all(same_values(tensor, theirs.tensors[role]) for role, tensor in ours.tensors.items())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("heads = 4", "heads = 3", "line 11: layer.mixer.heads is 3; expected a multiple of kv_heads (2)"),
        ("heads = 4\n", "", "line 9: layer.mixer.heads is missing; expected a whole number"),
        ("heads = 4", 'heads = "4"', "line 11: layer.mixer.heads is '4'; expected a whole number"),
        ("heads = 4", "head = 4", "line 11: layer.mixer.head is not known; expected heads, kv_heads"),
        ("dims = 16", "dims = 15", "line 17: layer.mixer.rope.dims is 15; expected an even number"),
        ("theta = 10000.0", "theta = 0", "line 16: layer.mixer.rope.theta is 0.0; expected a number above 0"),
        ('"GatedMLP"', '"Mlp"', "line 20: layer.feed_forward.kind is 'Mlp'; expected GatedMLP or MLP or MoE"),
        ('"GatedMLP"', '"MLP"', "layer.feed_forward.activation is missing; expected 'silu' or"),
        ("theta = 10000.0", "theta = 1" + "0" * 400, "line 16: layer.mixer.rope.theta is 1000"),
        ("eps = 1e-5", "eps = -1", "norm.eps is -1; expected a number of at least 0"),
        ("eps = 1e-5", "epsilon = 1e-5", "line 7: norm.epsilon is not known; expected eps"),
        ("context_length = 256", "context_length = 0", "line 4: model.context_length is 0"),
        ('output_norm = "last"\n', "", "tensor last has no role in model.toml"),
        ('output_norm = "last"', 'output_norm = "lost"', "tensor lost is missing, which model.toml names for output_norm"),
        ('ffn_norm = "b.{n}.n2"\n', "", "tensor b.0.n2 (and 2 more) has no role in model.toml"),
        ('unused = ["junk"]\n', "", "tensor junk has no role in model.toml"),
        ("blocks = 2", "blocks = 5", "expected (128, 64) for attn.q + attn.k + attn.v in 5 blocks"),
        ("blocks = 2", "block = 2", "attn.q + attn.k + attn.v.block is not known"),
        (", transposed = true", "", "tensor"),
        ('"b.{n}.down"', '"down"', "names one tensor for all layers; expected {n}"),
        ('"emb"', '"emb{n}"', "has {n} or {e} in a name outside the layers"),
        ("[model]", "[modell]", "modell is not known; expected model, norm, layer"),
        ("[model]", "[model", "not valid TOML"),
        ("[tensors]", "[[layers]]\nonly = [7]\nparallel = true\n[tensors]", "names layer 7, but there are 3"),
        ("[tensors]", "[[layers]]\nparallel = true\n[tensors]", "only is None; expected layers such as"),
        ("[tensors]", '[tensors]\noutput_bias = "last"', "has shape (64,); expected (288,) for output_bias, as model"),
    ],
)  # fmt: skip
def test_an_error_names_its_line(made: Made, old: str, new: str, message: str) -> None:
    assert LLAMA.count(old) == 1
    checkpoint = fused(built(made("llama", "plain")))
    if "transposed" in old:  # a square matrix has no wrong orientation
        checkpoint = replace(checkpoint, tensors={name: t for name, t in checkpoint.tensors.items() if name != "b.1.o"})
    with pytest.raises(InputError) as error:
        build(parse_description(LLAMA.replace(old, new), Path("model.toml")), checkpoint)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_problems_lists_every_tensor_without_a_role(made: Made) -> None:
    checkpoint = fused(built(made("llama", "plain")))
    text = LLAMA.replace('ffn_norm = "b.{n}.n2"\n', "")
    found = list(problems(parse_description(text, Path("model.toml")), checkpoint))
    assert [name for name in ("b.0.n2", "b.1.n2", "b.2.n2") if any(name in line for line in found)] == [
        "b.0.n2",
        "b.1.n2",
        "b.2.n2",
    ]
    assert list(problems(parse_description(LLAMA, Path("model.toml")), checkpoint)) == []


def test_norms_that_a_layer_has_as_parameters_of_its_own_are_two(made: Made) -> None:
    (group,) = find(fused(built(made("llama", "plain"))), 288).assignment.groups
    assert [(norm.weight, norm.bias) for norm in group.norms] == [("b.{n}.n1", None), ("b.{n}.n2", None)]


def test_the_layers_of_a_description_follow_surgery(made: Made, tmp_path: Path, tinyq: Callable[..., Ran]) -> None:
    checkpoint = fused(built(made("llama", "plain")))
    source = tmp_path / "source"
    write_weights(source / "model.safetensors", {name: t.array() for name, t in checkpoint.tensors.items()})
    single = LLAMA.replace("[tensors]", "[[layers]]\nonly = [2]\nmixer.window = 8\n\n[tensors]", 1)
    (source / "tinyq.toml").write_text(single, "utf-8")
    ran = tinyq("surgery", source, tmp_path / "out", "--swap", "0:2", "--repeat", "0..0")
    assert ran.code == 0, ran.err
    windows = [layer.mixer.window for layer in built(source).spec.layers if isinstance(layer.mixer, Attention)]
    assert windows == [None, None, 8]
    found = built(tmp_path / "out")
    windows = [layer.mixer.window for layer in found.spec.layers if isinstance(layer.mixer, Attention)]
    assert windows == [8, 8, None, None]
    old = built(source)
    assert same_values(found.layers[1].tensors["attn.q"], old.layers[2].tensors["attn.q"])
    assert same_values(found.layers[3].tensors["attn.q"], old.layers[0].tensors["attn.q"])


def test_a_described_checkpoint_converts_and_is_evaluated(
    made: Made, tmp_path: Path, tinyq: Callable[..., Ran]
) -> None:
    model = built(made("llama", "plain"))
    checkpoint = flat(model)
    names = nonsense(checkpoint.tensors)
    source = write_weights(
        tmp_path / "run" / "weights.safetensors", {names[name]: t.array() for name, t in checkpoint.tensors.items()}
    )
    write_tiny_tokenizer(source.parent, model.spec.vocab_size)
    outside, inside = sources(model)
    numbered = nonsense([*checkpoint.tensors, *(s.tensor.replace("{n}", "0") for s in inside)])
    marked = [replace(s, tensor=numbered[s.tensor.replace("{n}", "0")].replace(".0.", ".{n}.")) for s in inside]
    named = [replace(s, tensor=names[s.tensor]) for s in outside]
    described = tmp_path / "model.toml"
    described.write_text(description_text(Described(spec=model.spec, outside=named, inside=marked)), "utf-8")
    out = tmp_path / "out.gguf"
    with pytest.raises(InputError, match="tinyq describe"):
        convert(source, out, type="f32")
    written = convert(source, out, type="f32", describe=described, prove=True)
    assert written.as_dict()["proof"]["nmse"] < 1e-11
    described.unlink()  # the file records what it said
    scored = evaluate(out, tokens=2, speed=False).scores[0].evaluation
    assert scored is not None
    assert scored.source.origin == "recorded"
    assert scored.as_dict()["fidelity"]["nmse"] < 1e-11
    assert tinyq("verify", out, "--source", source).code == 0
    (source.parent / "tinyq.toml").write_text(
        description_text(Described(spec=model.spec, outside=named, inside=marked)), "utf-8"
    )
    assert load_model(source).spec == model.spec
