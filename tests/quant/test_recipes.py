"""Which tensor gets which type: against llama.cpp for models of any shape, and what it says of bad options."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_tools.errors import InputError
from quant import recipes
from quant.options import Override, TypeOptions
from quant.recipes import RECIPES, ModelFacts, TensorFacts, TypeChoice, assign, recipe
from quant.types import BF16, F16, F32, Q4_K, Q6_K, Q8_0, TYPES, TensorType, tensor_type
from tests.quant.quant_oracle import llama


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ARCHS = words(
    """
    llama falcon qwen2 qwen3 qwen2moe qwen3moe qwen3next qwen35 qwen35moe step35 glm4moe glm5-next gpt2
    bert phi3 gemma3 gemma3n deepseek2 deepseek32 mamba2 jamba rwkv7 olmo deci jais2 granitemoe dots1
    hy_v3 ernie4_5-moe bailingmoe2 exaone-moe minimax-m2 kimi-linear lfm2 llama-embed nanbeige
    """
)

# In a layer: names of every role and every rule, some of them made up.
PARTS = words(
    """
    attn_q attn_k attn_v attn_qkv attn_kv_b attn_output attn_gate attn_norm attn_q_norm attn_q_a
    attn_q_b attn_kv_a_mqa attn_k_b attn_v_b attn_rel_b ffn_up ffn_gate ffn_down ffn_norm ffn_gate_inp
    ffn_gate_inp_shexp ffn_gate_exps ffn_up_exps ffn_down_exps ffn_down_shexp ffn_gate_shexp
    ffn_gate_tid2eid ssm_in ssm_out ssm_conv1d ssm_conv1d_q ssm_ba ssm_alpha ssm_beta ssm_f_a ssm_g_b
    shortconv.conv shortconv.in_proj indexer.k_proj indexer.attn_k indexer.proj nextn.eh_proj
    nextn.shared_head_norm time_mix_w1 time_mix_key time_mix_lerp_fused altup_router laurel_l
    hc_attn_base
    """
)
OUTSIDE = words(
    """
    token_embd output per_layer_token_embd per_layer_model_proj position_embd token_types
    token_embd_norm output_norm v.patch_embd mm.a.code_embd v.blk.0.attn_v rope_freqs
    """
)
COLUMNS = (256, 512, 640, 128, 96, 48, 100, 768)


@st.composite
def models(draw: st.DrawFn) -> tuple[ModelFacts, list[TensorFacts]]:
    """A model of any architecture and layer count, with any of the known tensors, in any order."""
    arch = draw(st.sampled_from(ARCHS))
    kv_heads = draw(st.sampled_from((0, 1, 2, 4, 8)))
    model = ModelFacts(
        arch=arch,
        # llama_quant_model_from_metadata knows the 70B size of llama alone; test_quant_bytes has others from files.
        n_layer=draw(st.sampled_from((1, 3, 8, 9, 16, 33, 80) if arch == "llama" else (1, 5, 8, 12, 32, 47))),
        n_head=draw(st.sampled_from((8, 16))),
        n_head_kv=kv_heads,
        n_expert=draw(st.sampled_from((0, 1, 2, 8, 64))),
    )
    layers = draw(st.lists(st.integers(0, model.n_layer - 1), unique=True, max_size=12))
    parts = draw(st.lists(st.sampled_from(PARTS), unique=True, min_size=1, max_size=6))
    outside = draw(st.lists(st.sampled_from(OUTSIDE), unique=True))
    suffix = draw(st.sampled_from((".weight", ".weight", ".weight", ".bias", "")))
    names = [f"{name}.weight" for name in outside] + [f"blk.{n}.{part}{suffix}" for n in layers for part in parts]
    shapes = st.one_of(
        st.sampled_from(COLUMNS).map(lambda k: (k,)),
        st.tuples(st.sampled_from((1, 2)), st.sampled_from(COLUMNS)),
        st.tuples(st.sampled_from((1, 3)), st.sampled_from((1, 2)), st.sampled_from(COLUMNS)),
        st.just((2, 1)),
    )
    return model, [TensorFacts(name, draw(shapes)) for name in draw(st.permutations(names))]


# For two types llama.cpp ends the process if rows are not whole blocks; all layers of q1_0 are in the test of depths.
NO_REPLACEMENT = ("q1_0", "nvfp4")
types = st.sampled_from([kind for kind in TYPES if kind.encodes and kind.name not in NO_REPLACEMENT])
patterns = st.sampled_from(
    ("attn", "ffn_down", r"blk\.\d\.", "token_embd", "per_layer", "_(k|v)\\.", "weight$", "^output")
)


@settings(max_examples=400, deadline=None)
@given(
    models(),
    st.sampled_from([one for one in RECIPES.values() if one.name not in NO_REPLACEMENT]),
    st.booleans(),
    st.none() | types,
    st.none() | types,
    st.lists(st.tuples(patterns, types), max_size=3),
)
def test_any_model_gets_the_types_that_llama_cpp_gives(
    of: tuple[ModelFacts, list[TensorFacts]],
    wanted: recipes.TypeRecipe,
    pure: bool,
    output_type: TensorType | None,
    embedding_type: TensorType | None,
    overrides: list[tuple[str, TensorType]],
) -> None:
    model, tensors = of
    output_type, embedding_type = _unless_abort(output_type, tensors), _unless_abort(embedding_type, tensors)
    options = TypeOptions(
        pure=pure, output_type=output_type, embedding_type=embedding_type, overrides=(), file_order=True
    )
    if not wanted.base.plain:  # llama.cpp ignores overrides otherwise
        for pattern, kind in overrides:
            more = dataclasses.replace(
                options, overrides=(*options.overrides, Override.parse(f"{pattern}={kind.name}"))
            )
            options = more if _matches(wanted, model, tensors, more) else options
    choices = assign(wanted, model, tensors, options)
    theirs = _theirs(
        model,
        tensors,
        wanted,
        pure=pure,
        output_tensor_type=output_type and output_type.ggml_id,
        token_embedding_type=embedding_type and embedding_type.ggml_id,
        overrides=[(o.pattern.pattern, o.type.ggml_id) for o in reversed(options.overrides)],
    )
    assert {choice.name: choice.type.ggml_id for choice in choices} == theirs


def _theirs(
    model: ModelFacts, tensors: list[TensorFacts], wanted: recipes.TypeRecipe, **options: object
) -> dict[str, int]:
    """The number of the type that llama.cpp gives to each tensor."""
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "n_head_kv": model.n_head_kv, "n_expert": model.n_expert}
    more = {"n_embd": 256, "n_ff": 256, "n_embd_head_k": 32, "n_embd_head_v": 32}
    answer = llama().types(
        ftype=wanted.file_type,
        model={"architecture": model.arch, **sizes, **more},
        tensors=[(tensor.name, tensor.shape) for tensor in tensors],
        **options,
    )
    return {tensor.name: kind for tensor, kind in zip(tensors, answer, strict=True)}


@pytest.mark.parametrize("arch", ["qwen3", "falcon", "qwen3moe"])
@pytest.mark.parametrize("depth", [1, 2, 7, 8, 9, 15, 16, 17, 24, 31, 40, 65, 127])
def test_every_layer_of_a_model_of_any_depth(arch: str, depth: int) -> None:
    """The rules that count in eighths, in halves or from the first layer differ in a few layers of deep models alone."""
    experts = 8 if arch == "qwen3moe" else 0
    model = ModelFacts(arch=arch, n_layer=depth, n_head=16, n_head_kv=4, n_expert=experts)
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    names = [f"blk.{n}.{part}.weight" for n in range(depth) for part in parts]
    if experts:
        names = [name.replace(".ffn_up.", ".ffn_up_exps.").replace(".ffn_down.", ".ffn_down_exps.") for name in names]
    tensors = [TensorFacts(name, (8, 2, 768) if "_exps" in name else (2, 768)) for name in names]
    tensors += [TensorFacts(f"{name}.weight", (2, 768)) for name in ("token_embd", "output")]
    for wanted in RECIPES.values():
        choices = assign(wanted, model, tensors, TypeOptions(file_order=True))
        theirs = _theirs(model, tensors, wanted, pure=False, overrides=[])
        assert {choice.name: choice.type.ggml_id for choice in choices} == theirs, wanted.name


@pytest.mark.parametrize("gqa", [2, 3, 4, 5])
def test_any_number_of_heads_and_experts(gqa: int) -> None:
    """Rules ask for four query heads a value head, for four experts, and for eight."""
    parts = ("attn_v", "attn_k", "attn_output", "ffn_down", "attn_qkv")
    tensors = [TensorFacts(f"blk.{n}.{part}.weight", (2, 256)) for n in range(9) for part in parts]
    for experts in (0, 3, 4, 5, 7, 8, 9):
        model = ModelFacts(arch="qwen3moe", n_layer=9, n_head=2 * gqa, n_head_kv=2, n_expert=experts)
        for wanted in RECIPES.values():
            choices = assign(wanted, model, tensors, TypeOptions(file_order=True))
            theirs = _theirs(model, tensors, wanted, pure=False, overrides=[])
            assert {choice.name: choice.type.ggml_id for choice in choices} == theirs, (wanted.name, experts)


@pytest.mark.parametrize("arch", ["qwen3moe", "bailingmoe3"])
def test_the_mixture_recipe_tells_experts_from_other_matrices(arch: str) -> None:
    model = ModelFacts(arch=arch, n_layer=12, n_head=8, n_head_kv=2, n_expert=4)
    shapes = [(2, 256), (1, 2, 256), (2, 1, 256), (2, 2, 256), (3, 2, 256), (2, 1, 2, 256), (1, 2, 2, 256)]
    parts = ("ffn_up_exps", "ffn_gate_exps", "ffn_down_exps", "attn_q", "attn_k_b", "attn_output", "ssm_out")
    wanted = recipe("mxfp4_moe")
    for part in parts:
        tensors = [TensorFacts(f"blk.{n}.{part}.weight", shape) for n, shape in enumerate(shapes)]
        theirs = _theirs(model, tensors, wanted, pure=False, overrides=[])
        assert {choice.name: choice.type.ggml_id for choice in assign(wanted, model, tensors)} == theirs


def _matches(wanted: recipes.TypeRecipe, model: ModelFacts, tensors: list[TensorFacts], options: TypeOptions) -> bool:
    try:
        assign(wanted, model, tensors, options)
    except InputError:
        return False
    return True


def _unless_abort(kind: TensorType | None, tensors: list[TensorFacts]) -> TensorType | None:
    """F16 in place of a type that the output or an embedding does not fit: llama.cpp would abort, where we fall back."""
    columns = [tensor.shape[-1] for tensor in tensors if tensor.name.endswith(("token_embd.weight", "output.weight"))]
    return F16 if kind is not None and any(k % kind.block for k in columns) else kind


LLAMA = ModelFacts(arch="llama", n_layer=4, n_head=8, n_head_kv=8)
TENSORS = [
    TensorFacts("token_embd.weight", (32, 640)),
    TensorFacts("blk.0.attn_k.weight", (64, 640)),
    TensorFacts("blk.0.ffn_down.weight", (640, 1024)),
    TensorFacts("blk.0.ffn_down.bias", (640,)),
    TensorFacts("blk.0.ffn_gate_inp.weight", (4, 640), BF16),
]


def test_choices_say_why() -> None:
    embedding, keys, down, bias, router = assign(recipe("q4_k_m"), LLAMA, TENSORS)
    assert embedding == TypeChoice(
        name="token_embd.weight", type=Q8_0, wanted=Q6_K, reason="rows of 640 are not a multiple of 256"
    )
    assert keys.fell_back
    assert (keys.wanted, keys.type.name) == (Q4_K, "q5_0")
    assert down == TypeChoice(name="blk.0.ffn_down.weight", type=Q4_K, wanted=Q4_K)
    assert bias == TypeChoice(name="blk.0.ffn_down.bias", type=F32, wanted=F32, reason="vector", kept=True)
    # A file's own type is copied; a converter gives F32 as the source, whatever the checkpoint holds.
    assert router == TypeChoice(name="blk.0.ffn_gate_inp.weight", type=BF16, wanted=BF16, reason="router", kept=True)


def test_an_options_type_falls_back_where_llama_cpp_aborts() -> None:
    options = TypeOptions(embedding_type=Q4_K)
    embedding = assign(recipe("q8_0"), LLAMA, TENSORS, options)[0]
    assert embedding.type.name == "q5_0"
    assert embedding.asked_for


def test_choices_say_which_types_the_user_asked_for() -> None:
    tensors = [*TENSORS, TensorFacts("output.weight", (32, 1024))]
    for options, asked in (
        (TypeOptions(), set()),
        (TypeOptions(pure=True), set()),
        (TypeOptions(types={"output.weight": Q8_0}), set()),
        (TypeOptions(output_type=Q8_0), {"output.weight"}),
        (TypeOptions(embedding_type=Q8_0), {"token_embd.weight"}),
        (TypeOptions(overrides=(Override.parse("attn_k|bias=q8_0"),)), {"blk.0.attn_k.weight"}),
    ):
        choices = assign(recipe("q4_k_m"), LLAMA, tensors, options)
        assert {choice.name for choice in choices if choice.asked_for} == asked
    tied = assign(recipe("q4_k_m"), LLAMA, TENSORS, TypeOptions(output_type=Q8_0))
    assert [choice.name for choice in tied if choice.asked_for] == ["token_embd.weight"]


def test_the_last_override_wins_and_acts_on_16_bit_recipes() -> None:
    options = TypeOptions(overrides=(Override.parse("ffn_down=q8_0"), Override.parse(r"blk\.0\.ffn=Q6_K")))
    down = assign(recipe("bf16"), LLAMA, TENSORS, options)[2]
    assert down == TypeChoice(
        name="blk.0.ffn_down.weight", type=Q6_K, wanted=Q6_K, reason=r"override blk\.0\.ffn", asked_for=True
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ffn_down", "; expected REGEX=TYPE"),
        ("=q4_k", "; expected REGEX=TYPE"),
        ("ffn_(=q4_k", "is not a regular expression"),
        ("ffn=q4_x", "similar types are q4_"),
        ("ffn=i8", "can be read but not written"),
    ],
)
def test_bad_overrides(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Override.parse(text)


@pytest.mark.parametrize("pattern", ["no_such_tensor", "ffn_gate_inp"])
def test_an_override_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(InputError, match=r"matches none of the 3 tensors"):
        assign(recipe("q4_k_m"), LLAMA, TENSORS, TypeOptions(overrides=(Override.parse(f"{pattern}=q8_0"),)))


def test_an_experts_tensor_outside_the_layers_is_an_error() -> None:
    model = dataclasses.replace(LLAMA, n_expert=4)
    with pytest.raises(InputError, match=r"blk\.4\.ffn_down\.weight is in none of the 4 layers"):
        assign(recipe("q4_k_m"), model, [TensorFacts("blk.4.ffn_down.weight", (2, 256))])


def test_facts_from_metadata() -> None:
    metadata = {
        "general.architecture": "qwen3next",
        "qwen3next.block_count": 8,
        "qwen3next.attention.head_count": 16,
        "qwen3next.attention.head_count_kv": [0, 0, 0, 2] * 2,
        "qwen3next.expert_count": 64,
    }
    assert ModelFacts.from_metadata(metadata, has_imatrix=True) == ModelFacts(
        arch="qwen3next", n_layer=8, n_head=16, n_head_kv=0, n_expert=64, has_imatrix=True
    )
    assert ModelFacts.from_metadata({"general.architecture": "gpt2", "gpt2.block_count": 2}).n_head_kv == 0
    looped = {"general.architecture": "nanbeige", "nanbeige.block_count": 3, "nanbeige.num_loops": 2}
    assert ModelFacts.from_metadata(looped).n_layer == 6
    with pytest.raises(InputError, match=r"general\.architecture is missing"):
        ModelFacts.from_metadata({})
    with pytest.raises(InputError, match="block_count is 0"):
        ModelFacts.from_metadata({"general.architecture": "llama"})
    with pytest.raises(InputError, match=r"llama\.block_count is 'x'; expected a whole number"):
        ModelFacts.from_metadata({"general.architecture": "llama", "llama.block_count": "x"})


def test_facts_of_architectures_that_count_layers_in_their_own_way() -> None:
    def facts(arch: str, **keys: object) -> ModelFacts:
        return ModelFacts.from_metadata({"general.architecture": arch, **{f"{arch}.{k}": v for k, v in keys.items()}})

    # load_arch_hparams of graniteswitch: its MTP layers are all in one.
    assert facts("graniteswitch", block_count=9, nextn_predict_layers=3) == ModelFacts(
        arch="graniteswitch", n_layer=7, n_head=0, n_head_kv=0, n_layer_nextn=1
    )
    assert facts("nanbeige", block_count=3) == ModelFacts(arch="nanbeige", n_layer=3, n_head=0, n_head_kv=0)
    assert facts("glm4moe", block_count=5, nextn_predict_layers=1).n_layer_nextn == 1
    assert facts("clip").n_layer == 0
    assert facts("llama", block_count=1).n_layer == 1
    heads = {"attention.head_count": [6, 8], "attention.head_count_kv": [3, 1]}
    made = facts("llama", block_count=2, **heads)
    assert (made.n_head, made.n_head_kv, made.n_expert, made.has_imatrix) == (6, 3, 0, False)
    wrong: tuple[object, ...] = ([], "7", 1.5)
    for bad in wrong:
        with pytest.raises(InputError, match=r"attention\.head_count is .*; expected a whole number"):
            facts("llama", block_count=2, **{"attention.head_count": bad})


def test_layers_of_multi_token_prediction_do_not_count_for_the_size() -> None:
    """What llama.cpp takes for a 70B model (LLM_TYPE_70B) has 80 layers without them."""
    tensors = [TensorFacts(f"blk.{n}.attn_v.weight", (256, 256)) for n in range(80)]

    def types(layers: int, nextn: int) -> list[object]:
        model = ModelFacts(arch="qwen2", n_layer=layers, n_head=8, n_head_kv=1, n_layer_nextn=nextn)
        return [made.type for made in recipes.assign(recipes.recipe("q4_k_s"), model, tensors)]

    assert types(81, 1) == types(80, 0) != types(81, 0)


@pytest.mark.parametrize("name", ["q4_k_s", "q4_k_m", "q3_k_m", "iq2_xs", "iq2_m"])
def test_tensors_count_by_layer_unless_the_order_of_the_file_is_asked_for(name: str) -> None:
    """Rules count in the order of llama.cpp's loader: layers as numbers, names as bytes."""
    model = ModelFacts(arch="llama", n_layer=24, n_head=8, n_head_kv=8)
    parts = ("attn_v", "ffn_down", "attn_qkv")
    loaded = [TensorFacts(f"blk.{n}.{part}.weight", (2, 256)) for n in range(24) for part in sorted(parts)]
    loaded = [TensorFacts("token_embd.weight", (2, 256)), *loaded]
    mixed = [loaded[n * 29 % len(loaded)] for n in range(len(loaded))]
    assert sorted(mixed, key=lambda t: t.name) == sorted(loaded, key=lambda t: t.name)
    for ours, file_order, counted in ((mixed, False, loaded), (mixed, True, mixed), (loaded, False, loaded)):
        choices = assign(recipe(name), model, ours, TypeOptions(file_order=file_order))
        assert [choice.name for choice in choices] == [tensor.name for tensor in ours]
        theirs = _theirs(model, counted, recipe(name), pure=False, overrides=[])
        assert {choice.name: choice.type.ggml_id for choice in choices} == theirs


def test_types_by_full_name_decide_last() -> None:
    types = {"blk.0.attn_k.weight": Q6_K, "blk.0.ffn_down.weight": F16}
    options = TypeOptions(types=types, overrides=(Override.parse("ffn_down=q8_0"),))
    _, keys, down, *_ = assign(recipe("q4_k_m"), LLAMA, TENSORS, options)
    assert (keys.type.name, keys.wanted, keys.reason) == ("q8_0", Q6_K, "rows of 640 are not a multiple of 256")
    assert (down.type, down.reason) == (Q8_0, "override ffn_down")
    assert assign(recipe("q4_k_m"), LLAMA, TENSORS, dataclasses.replace(options, overrides=()))[2].type is F16


def test_an_experts_tensor_in_the_last_layer_is_in_a_layer() -> None:
    model = dataclasses.replace(LLAMA, n_expert=2)
    for name, good in (
        ("blk.3.ffn_up_exps.weight", True),
        ("blk.0.ffn_gate_exps.weight", True),
        ("ffn_up.weight", False),
    ):
        tensors = [TensorFacts(name, (2, 2, 256))]
        if good:
            assert assign(recipe("iq3_xs"), model, tensors)
        else:
            with pytest.raises(InputError, match="is in none of the 4 layers"):
                assign(recipe("iq3_xs"), model, tensors)
    # With one expert and with none, its place among those of its role is what counts.
    for experts in (0, 1):
        few = dataclasses.replace(LLAMA, n_expert=experts)
        assert assign(recipe("iq3_xs"), few, [TensorFacts("ffn_up.weight", (2, 256))])


@pytest.mark.parametrize(("short", "whole"), [("Q4_K", "q4_k_m"), ("q3_k", "q3_k_m"), ("q5_K", "q5_k_m")])
def test_a_k_type_without_a_size_is_the_medium_recipe(short: str, whole: str) -> None:
    assert recipe(short) is recipe(whole)


def test_types_of_few_bits_need_an_importance_matrix() -> None:
    tensors = [TensorFacts(name, (2, 256)) for name in ("token_embd.weight", "blk.0.attn_q.weight", "output.weight")]
    for name in ("iq2_xxs", "iq3_xxs", "iq1_m", "q2_k_s"):
        wanted = recipe(name)
        choices = assign(wanted, LLAMA, tensors)
        with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight needs an importance matrix .* and there is none"):
            recipes.require_importance(wanted, tensors, choices, ())
        with pytest.raises(
            InputError, match="and the importance matrix does not cover it; make one with `tinyq imatrix`"
        ):
            recipes.require_importance(wanted, tensors, choices, ("output.weight",))
        recipes.require_importance(wanted, tensors, choices, ("blk.0.attn_q.weight",))
    for name in ("iq3_s", "q2_k", "tq1_0", "mxfp4_moe"):
        recipes.require_importance(recipe(name), tensors, assign(recipe(name), LLAMA, tensors), ())
    # ggml's own encoder needs one for the embedding too, and a copy needs none.
    options = TypeOptions(embedding_type=tensor_type("iq2_xs"))
    choices = assign(recipe("q8_0"), LLAMA, tensors, options)
    with pytest.raises(InputError, match=r"token_embd\.weight needs an importance matrix to be written as iq2_xs"):
        recipes.require_importance(recipe("q8_0"), tensors, choices, ())
    same = [dataclasses.replace(tensor, source=tensor_type("iq2_xs")) for tensor in tensors]
    recipes.require_importance(recipe("iq2_xs"), same[1:2], assign(recipe("iq2_xs"), LLAMA, same[1:2]), ())
    copied_first = [same[1], dataclasses.replace(tensors[1], name="blk.1.attn_q.weight")]
    choices = assign(recipe("iq2_xs"), LLAMA, copied_first)
    with pytest.raises(InputError, match=r"blk\.1\.attn_q\.weight needs an importance matrix"):
        recipes.require_importance(recipe("iq2_xs"), copied_first, choices, ())
