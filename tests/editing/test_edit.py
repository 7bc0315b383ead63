"""`tinyq edit`: gguf-py reads exactly the edit, in place and elsewhere, and llama.cpp loads what comes of it."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gguf_tools import cli, edit, inspect, split
from gguf_tools.editing.copies import write_copies
from gguf_tools.editing.in_place import plan_in_place, plan_rewrite
from gguf_tools.editing.plan import Edits, plan_edit
from gguf_tools.errors import CheckpointError, InputError, LlamaError, OutputError, UnsupportedError
from gguf_tools.formats import journal
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import pack_header, read_header
from gguf_tools.formats.gguf.split import read_parts
from gguf_tools.formats.gguf.values import Field, ValueType, string
from gguf_tools.formats.journal import journal_path, undo_paths
from gguf_tools.runtime.process import Runtime, RuntimeOptions
from tests.conftest import Ran
from tests.editing.headers import FIELDS, KEYS, as_gguf_py, expected, tensors
from tests.tiny_gguf import TEMPLATE, VOCAB, write_dense

Tinyq = Callable[..., Ran]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 of two layers, not to be changed."""
    return write_dense(tmp_path_factory.mktemp("edit") / "dense.gguf", chat=True)


def copy(path: Path, to: Path) -> Path:
    return Path(shutil.copy(path, to))


@pytest.fixture
def file(dense: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return copy(dense, tmp_path / "model.gguf")


# What an edit does


def written(dense: Path, folder: Path, edits: Edits) -> Path:
    """The file after an edit, written elsewhere."""
    plan = plan_edit([read_header(dense)], edits)
    write_copies(plan.files, [folder / "out.gguf"], force=True)
    return folder / "out.gguf"


def changed(dense: Path, folder: Path, edits: Edits) -> Path:
    """The file after the same edit in place, undone and done again."""
    path = copy(dense, folder / "changed.gguf")
    plan = plan_edit([read_header(path)], edits)
    for again in (False, True):
        change = plan_in_place(plan) or plan_rewrite(plan)
        if change.way == "header" and change.patches:
            journal.change(path, change.patches, "edit")
        elif change.patches:
            journal.rewrite(path, change.patches[0], "edit")
        if change.patches and not again:
            journal.undo(path)
        if not again:
            assert path.read_bytes() == dense.read_bytes()
    assert not journal_path(path).exists()
    for record in undo_paths(path):
        record.unlink()
    return path


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(KEYS, FIELDS, max_size=3),
    name=st.none() | st.text(max_size=60),
    removed=st.sets(st.sampled_from(["general.name", "tokenizer.ggml.pre", "tokenizer.chat_template"])),
    renamed=st.dictionaries(
        st.sampled_from(["token_embd.weight", "blk.1.attn_k.weight"]),
        st.from_regex(r"[a-z.]{1,63}", fullmatch=True),
        max_size=1,
    ),
)
def test_gguf_py_reads_exactly_the_edit(
    dense: Path,
    tmp_path: Path,
    values: dict[str, Field],
    name: str | None,
    removed: set[str],
    renamed: dict[str, str],
) -> None:
    """Random values of every type, removed keys and names of tensors; no byte of a tensor changes."""
    if name is not None:
        values = {**values, "general.name": string(name)}
    removed = removed - values.keys()
    data = tensors(dense)
    wanted = {key: value for key, value in as_gguf_py(dense).items() if key not in removed}
    wanted |= {key: expected(field) for key, field in values.items()}
    edits = Edits(values=values, removed=tuple(removed), renamed=renamed)
    for make in (written, changed):
        path = make(dense, tmp_path, edits)
        found = as_gguf_py(path)
        reserve = found.pop(keys.RESERVE, None)
        assert reserve is None or make is changed
        assert found == wanted
        names = tensors(path)
        assert list(names) == [renamed.get(old, old) for old in data]
        assert list(names.values()) == list(data.values())


def test_nothing_changes_where_nothing_is_edited(dense: Path, file: Path, tmp_path: Path) -> None:
    result = edit(file, tmp_path / "out.gguf", {"general.name": "tiny dense", "qwen3.block_count": 2})
    assert result.plan
    assert result.plan.changes == ()
    assert (tmp_path / "out.gguf").read_bytes() == dense.read_bytes()
    again = edit(file, values=["general.name=tiny dense"], in_place=True)
    assert (again.bytes, str(again)) == (0, "changes   none: the file says all this already")
    assert file.read_bytes() == dense.read_bytes()
    assert undo_paths(file) == []


def test_in_the_headers_room_or_rewritten(dense: Path, file: Path) -> None:
    file.chmod(0o640)
    short = edit(file, values={"general.name": "tiny", "qwen3.context_length": 300}, in_place=True)
    assert (short.in_place, file.stat().st_size) == ("header", dense.stat().st_size)
    longer = edit(file, values={"general.name": "tiny" * 50, "my.list:[u16]": [1, 2, 3]}, in_place=True)
    assert longer.in_place == "rewritten"
    assert read_header(file).get("my.list") == (1, 2, 3)
    assert read_header(file).metadata["my.list"].element is ValueType.UINT16
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert tensors(file) == tensors(dense)
    with Runtime(file, RuntimeOptions(threads=1)) as runtime:
        assert runtime.info.context_train == 300
    assert len(undo_paths(file)) == 2
    assert edit(file, undo=True).undone == "general.name set, my.list set"
    assert edit(file, undo=True).undone == "general.name set, qwen3.context_length set"
    assert file.read_bytes() == dense.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(InputError, match="nothing to undo"):
        edit(file, undo=True)


def test_what_is_removed_becomes_room(file: Path) -> None:
    """Removing 300 bytes leaves a reserve, from which a later edit takes what it needs."""
    size = file.stat().st_size
    edit(file, values={}, unset=["tokenizer.chat_template"], in_place=True)
    assert len(read_header(file).get(keys.RESERVE)) > 200
    again = edit(file, values={"tokenizer.chat_template": TEMPLATE}, in_place=True)
    assert (again.in_place, file.stat().st_size) == ("header", size)
    assert read_header(file).get("tokenizer.chat_template") == TEMPLATE


def test_every_gap_is_filled(dense: Path, tmp_path: Path) -> None:
    """A name that is shorter by any number of bytes fits in place, and both readers read it."""
    long, source, path = "n" * 40, tmp_path / "a.gguf", tmp_path / "b.gguf"
    edit(dense, source, {"general.name": long}, prove=False)
    header, data = read_header(source), tensors(dense)
    for shorter in range(1, 40):
        plan = plan_edit([header], Edits(values={"general.name": string(long[shorter:])}, renamed={}))
        change = plan_in_place(plan)
        assert change, shorter
        content = bytearray(source.read_bytes())
        for patch in change.patches:
            content[patch.offset : patch.offset + len(patch.old)] = patch.new
        path.write_bytes(content)
        assert read_header(path).get("general.name") == long[shorter:]
        assert tensors(path) == data


def test_alignment_moves_the_tensors(dense: Path, file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    edit(file, out, {"general.alignment": 1024})
    header = read_header(out)
    assert (header.alignment, header.data_offset % 1024) == (1024, 0)
    assert tensors(out) == tensors(dense)
    with pytest.raises(InputError, match=r"general\.alignment 1024 all tensors move"):
        edit(file, values={"general.alignment": 1024}, in_place=True)
    edit(out, tmp_path / "back.gguf", unset=["general.alignment"])
    assert (tmp_path / "back.gguf").read_bytes() == dense.read_bytes()


def test_a_file_without_tensors(dense: Path, tmp_path: Path) -> None:
    """A vocabulary alone, not padded at its end, as llama.cpp's own ones are; llama.cpp loads that and no more."""
    source = tmp_path / "vocabulary.gguf"
    header = read_header(dense)
    source.write_bytes(pack_header(header.metadata, (), 1))
    before = source.read_bytes()
    assert len(before) % 32
    result = edit(source, values={"tokenizer.ggml.eos_token_id": 256}, in_place=True, prove=True)
    assert (result.in_place, source.stat().st_size) == ("header", len(before))
    assert (
        edit(source, values={"general.name": "longer than it was before"}, in_place=True, prove=True).in_place
        == "rewritten"
    )
    assert as_gguf_py(source)["tokenizer.ggml.eos_token_id"][1] == [256]
    edit(source, undo=True)
    edit(source, undo=True)
    assert source.read_bytes() == before
    with pytest.raises(UnsupportedError, match="not after this edit"):
        edit(source, unset=["tokenizer.ggml.merges"], in_place=True)


# Split models


def test_a_split_model(dense: Path, tmp_path: Path) -> None:
    parts = split(dense, tmp_path / "part", max_tensors=9).paths
    before = [path.read_bytes() for path in parts]
    out = edit(parts[2], tmp_path / "out.gguf", {"general.name": "longer than it was"}, unset=["tokenizer.ggml.pre"])
    assert [path.name for path in out.paths] == [f"out-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert [path.read_bytes() for path in parts] == before
    found = [read_header(path) for path in out.paths]
    assert found[0].get("general.name") == "longer than it was"
    assert "tokenizer.ggml.pre" not in found[0].metadata
    (identity,) = {header.get(keys.SPLIT_ID) for header in found}
    assert identity != read_header(parts[0]).get(keys.SPLIT_ID)
    with Runtime(out.paths[0], RuntimeOptions(threads=1)) as runtime:
        assert runtime.info.metadata["general.name"] == "longer than it was"
    # In place, metadata change the first shard, and a tensor's name the shard that has it.
    result = edit(parts[1], values={"general.name": "other", "qwen3.context_length": 9}, in_place=True)
    assert result.paths == (parts[0],)
    third = read_header(parts[2]).tensors[0].name
    result = edit(parts[0], rename={third: third.replace("weight", "w")}, in_place=True, prove=False)
    assert result.paths == (parts[2],)
    assert [part.get(keys.SPLIT_ID) for part in read_parts(parts[1])] == [read_header(parts[1]).get(keys.SPLIT_ID)] * 3
    with pytest.raises(InputError, match="2 shards would change"):
        edit(
            parts[0],
            values={"general.name": "x"},
            rename={read_header(parts[1]).tensors[0].name: "y"},
            in_place=True,
            prove=False,
        )
    edit(parts[2], undo=True)
    edit(parts[0], undo=True)
    assert [path.read_bytes() for path in parts] == before


# What is refused


NOT_WRITTEN: list[tuple[Mapping[str, Any], str]] = [
    ({"qwen3.block_count:u16": 2}, r"qwen3.block_count has the type u16; llama.cpp reads it as u32"),
    ({"qwen3.rope.freq_base:f64": 1e4}, "has the type f64; llama.cpp reads it as f32"),
    ({"qwen3.rope.freq_base": float("nan")}, "qwen3.rope.freq_base is nan; expected a finite number"),
    ({"qwen3.rope.freq_base": 0}, "qwen3.rope.freq_base is 0.0; expected more than 0"),
    (
        {"qwen3.rope.scaling.type": "yarm"},
        "qwen3.rope.scaling.type is 'yarm'; expected one of none, linear, yarn, longrope",
    ),
    (
        {"qwen3.attention.head_count:[u32]": [4, 4, 4]},
        "qwen3.attention.head_count has 3 items; expected 2, as qwen3.block_count",
    ),
    ({"qwen3.rope.dimension_sections": [1, 2]}, "has 2 items; expected 4 items"),
    ({"tokenizer.ggml.eos_token_id": VOCAB}, f"eos_token_id is {VOCAB}; expected 0 to {VOCAB - 1}"),
    ({"tokenizer.ggml.token_type": [1] * (VOCAB - 1)}, f"token_type has {VOCAB - 1} items; expected {VOCAB}, as many"),
    ({"tokenizer.ggml.token_type": [9] * VOCAB}, "token_type, item 0 is 9; expected 0 to 6"),
    ({"tokenizer.ggml.tokens": ["a"] * VOCAB}, "tokens has 'a' twice"),
    ({"tokenizer.chat_template": "{% if x %}"}, r"tokenizer.chat_template does not parse \(line 1: "),
    ({"tokenizer.chat_template.tool": "{{ x "}, r"tokenizer.chat_template.tool does not parse"),
    ({"general.alignment": 48}, "general.alignment is 48; expected a power of two from 8 to 65536"),
    ({"general.architecture": "llama"}, "general.architecture cannot be changed"),
    ({"split.count:u16": 3}, "split.count cannot be changed: tinyq split and tinyq merge write it"),
    ({"tinyq.version": "9"}, "tinyq.version cannot be set"),
    (
        {"llama.context_length": 9},
        r"llama.context_length is not a key .* did you mean qwen3.context_length\? To set it as it is",
    ),
    ({"qwen3.blok_count": 3}, "qwen3.blok_count is not a key that llama.cpp reads.* did you mean qwen3.block_count"),
    ({"general.name:text": "a"}, "there is no type 'text'"),
    ({"my key": 1}, "'my key' is no key"),
    ({"my.bytes:[u8]": [1, 256]}, r"my.bytes, item 1 is 256; expected 0 to 255 \(u8\)"),
    ({"my.number:f32": 1e39}, "my.number is 1e[+]39; expected a number that fits f32"),
    ({"my.flag:bool": 1}, "my.flag is 1; expected true or false"),
    ({"my.mixed": [1, "a"]}, "expected items of one type"),
]


@pytest.mark.parametrize(("values", "complaint"), NOT_WRITTEN)
def test_values_that_llama_cpp_would_not_read(
    file: Path, tmp_path: Path, values: Mapping[str, Any], complaint: str
) -> None:
    before = file.read_bytes()
    for options in ({"out": tmp_path / "out.gguf"}, {"in_place": True}, {"dry_run": True}):
        with pytest.raises(InputError, match=complaint):
            edit(file, values=values, **options)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_arrays_follow_the_number_of_layers(file: Path, tmp_path: Path) -> None:
    edit(file, tmp_path / "a.gguf", {"qwen3.attention.head_count_kv:[u32]": [2, 2]})
    with pytest.raises(InputError, match=r"head_count_kv has 2 items; expected 1, as qwen3\.block_count says"):
        edit(tmp_path / "a.gguf", values={"qwen3.block_count": 1}, in_place=True, prove=False)


@pytest.mark.parametrize(
    ("renamed", "complaint"),
    [
        ({"blk.0.attn_z.weight": "x"}, "there is no tensor blk.0.attn_z.weight; did you mean blk.0.attn_"),
        ({"blk.0.attn_q.weight": "blk.0.attn_k.weight"}, "two tensors would be called blk.0.attn_k.weight"),
        ({"blk.0.attn_q.weight": "x" * 64}, "the new name has 64 bytes; expected 1 to 63"),
        ({"blk.0.attn_q.weight": "ä" * 32}, "the new name has 64 bytes"),
        ({"blk.0.attn_q.weight": "a\nb"}, "printable"),
    ],
)
def test_names_that_are_refused(file: Path, renamed: dict[str, str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        edit(file, rename=renamed, in_place=True, prove=False)
    assert undo_paths(file) == []


def test_two_tensors_change_names(dense: Path, file: Path) -> None:
    one, two = "blk.0.attn_k.weight", "blk.0.attn_v.weight"
    result = edit(file, rename={one: two, two: one}, in_place=True)
    assert result.in_place == "header"
    before, after = tensors(dense), tensors(file)
    assert (after[two], after[one]) == (before[one], before[two])


# llama.cpp


def test_what_llama_cpp_would_not_load_is_not_written(file: Path, tmp_path: Path) -> None:
    before = file.read_bytes()
    for options in (
        {"rename": {"blk.0.attn_q.weight": "blk.0.attn_z.weight"}},
        {"values": {"qwen3.embedding_length": 16}},
    ):
        with pytest.raises(
            UnsupportedError, match=r"loads it as it is, but not after this edit .*; nothing was written"
        ):
            edit(file, in_place=True, **options)
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])
    edit(file, tmp_path / "out.gguf", unset=["qwen3.block_count"], prove=False)
    with pytest.raises(LlamaError), Runtime(tmp_path / "out.gguf", RuntimeOptions(threads=1)):
        pass
    # What did not load before may be edited, also to what loads.
    repaired = edit(tmp_path / "out.gguf", tmp_path / "more.gguf", {"qwen3.context_length": 300})
    assert repaired.proof
    assert "neither before nor after" in repaired.proof
    with pytest.raises(UnsupportedError, match=r"does not load it as it is .* give --no-prove"):
        edit(tmp_path / "out.gguf", tmp_path / "none.gguf", {"qwen3.context_length": 300}, prove=True)
    repaired = edit(tmp_path / "out.gguf", values={"qwen3.block_count": 2}, in_place=True, prove=True)
    assert repaired.proof
    assert repaired.proof.startswith("llama.cpp loads it after the edit")
    assert as_gguf_py(tmp_path / "out.gguf").items() >= as_gguf_py(file).items()


def test_what_llama_cpp_does_not_read_needs_no_proof(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gguf_tools.editing.proof.load_problem", None)
    result = edit(file, values={"general.author": "A", "my.note": "b"}, in_place=True)
    assert result.proof == "llama.cpp reads none of what changes when it loads the model"
    assert result.notes == ("my.note is a key of your own (str): llama.cpp does not read it",)


# The command


def test_values_as_text(tinyq: Tinyq, file: Path, tmp_path: Path) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}\n", "utf-8")
    sets = [
        "qwen3.context_length=0x200",
        "qwen3.rope.freq_base=5e5",
        "tokenizer.ggml.add_bos_token=true",
        f"tokenizer.chat_template=@{tmp_path / 'chat.jinja'}",
        "qwen3.feed_forward_length=[48, 48]",
        "my.text:str=7",
        "my.at=@@home",
        "my.number=-7",
        "my.large=5000000000",
        "my.half=0.5",
        'my.words=["a", "b"]',
        "my.floats:[f64]=[1, 2.5]",
        "my.equation=a=b",
    ]
    ran = tinyq("edit", file, tmp_path / "out.gguf", *(part for one in sets for part in ("--set", one)), "--name", "@x")
    assert (ran.code, ran.err) == (0, "")
    header = read_header(tmp_path / "out.gguf")
    found = {key: (field.type.name, field.value) for key, field in header.metadata.items()}
    assert found["qwen3.context_length"] == ("UINT32", 512)
    assert found["qwen3.rope.freq_base"] == ("FLOAT32", 500000.0)
    assert found["tokenizer.ggml.add_bos_token"] == ("BOOL", True)
    assert found["tokenizer.chat_template"] == ("STRING", "{{ messages }}\n")
    assert header.metadata["qwen3.feed_forward_length"] == Field(ValueType.ARRAY, (48, 48), ValueType.UINT32)
    assert found["my.text"] == ("STRING", "7")
    assert found["my.at"] == ("STRING", "@home")
    assert found["my.number"] == ("INT32", -7)
    assert found["my.large"] == ("UINT64", 5000000000)
    assert found["my.half"] == ("FLOAT32", 0.5)
    assert found["my.words"] == ("ARRAY", ("a", "b"))
    assert header.metadata["my.floats"].element is ValueType.FLOAT64
    assert found["my.equation"] == ("STRING", "a=b")
    assert found["general.name"] == ("STRING", "@x")
    assert max(map(len, ran.out.splitlines()[:20])) <= 80


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--set", "general.name"], "expected KEY=VALUE"),
        (["--set", "qwen3.context_length=many"], "qwen3.context_length is 'many'; expected an integer (u32)"),
        (["--set", "my.a=1", "--set", "my.a=2"], "--set my.a is given twice"),
        (["--set", "my.a=@none.txt"], "none.txt: cannot be read"),
        (["--set", "my.a:[u32]=1,2"], "expected a JSON array"),
        (["--unset", "general.nam"], "there is no key general.nam to remove; did you mean general.name?"),
        (["--rename-tensor", "a"], "expected OLD=NEW"),
        ([], "there is no edit"),
        (["--name", "a", "--from", "b.toml"], "--from states the whole header"),
        (["--show", "--name", "a"], "--show prints the header as it is"),
        (["--arrays", "--name", "a"], "--arrays belongs to --show"),
        (["--undo", "--name", "a"], "--undo undoes the last change"),
    ],
)
def test_usage(tinyq: Tinyq, file: Path, tmp_path: Path, arguments: list[str], complaint: str) -> None:
    ran = tinyq("edit", file, tmp_path / "out.gguf", *arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert complaint in ran.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_a_value_is_read_from_is_an_input(tinyq: Tinyq, file: Path, tmp_path: Path) -> None:
    template = tmp_path / "a.gguf"
    template.write_text("{{ messages }}", "utf-8")
    value = ["--set", f"tokenizer.chat_template=@{template}", "--force"]
    for outputs in ([template], [tmp_path / "b.gguf", "--json", template]):
        ran = tinyq("edit", file, *outputs, *value)
        assert (ran.code, "is also an input of this command" in ran.err) == (2, True)
    assert template.read_text("utf-8") == "{{ messages }}"


def test_where_it_is_written_is_said(tinyq: Tinyq, file: Path, tmp_path: Path) -> None:
    assert "give OUT, or --in-place" in tinyq("edit", file, "--name", "a").err
    assert "give only one of them" in tinyq("edit", file, tmp_path / "a.gguf", "--in-place", "--name", "a").err
    ran = tinyq("edit", file, "--name", "a", "--dry-run", "--json", tmp_path / "a.json")
    assert (ran.code, "nothing was written (--dry-run)" in ran.out) == (0, True)
    report = json.loads((tmp_path / "a.json").read_text("utf-8"))
    assert report["changes"] == [
        {"key": "general.name", "old": {"type": "str", "value": "tiny dense"}, "new": {"type": "str", "value": "a"}}
    ]
    assert (report["in_place"], report["paths"], "bytes" in report) == (None, [], False)
    assert "nothing to complete" in tinyq("edit", file, "--in-place").out
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    assert "is a symbolic link; give its target" in tinyq("edit", link, "--in-place", "--name", "a").err


# Interruptions


def test_an_interrupted_change_is_completed_or_undone(tinyq: Tinyq, dense: Path, file: Path) -> None:
    edit(file, values={"qwen3.context_length": 300}, in_place=True)
    changed = file.read_bytes()
    for option, after in (("--in-place", changed), ("--undo", dense.read_bytes())):
        file.write_bytes(dense.read_bytes())
        (record,) = undo_paths(file)
        record.rename(journal_path(file))
        with pytest.raises(CheckpointError, match="an in-place change was interrupted"):
            edit(file, values={"general.name": "a"}, dry_run=True)
        ran = tinyq("edit", file, option)
        assert (ran.code, ran.err) == (0, "")
        assert (file.read_bytes(), journal_path(file).exists()) == (after, False)


def test_a_rewriting_that_fails_leaves_the_file_and_nothing_to_undo(
    dense: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(journal, "copy_range", full)
    with pytest.raises(OutputError, match="the disk is full"):
        edit(file, values={"general.name": "n" * 100}, in_place=True, prove=False)
    assert file.read_bytes() == dense.read_bytes()
    assert list(file.parent.iterdir()) == [file]


def test_a_rewriting_killed_before_the_file_appeared_is_forgotten(dense: Path, file: Path) -> None:
    """Killed between its undo record and the new file: undoing takes back the change before it."""
    edit(file, values={"qwen3.context_length": 300}, in_place=True)
    middle = file.read_bytes()
    edit(file, values={"general.name": "n" * 100}, in_place=True)
    file.write_bytes(middle)
    assert len(undo_paths(file)) == 2
    assert edit(file, undo=True).undone == "qwen3.context_length set"
    assert file.read_bytes() == dense.read_bytes()
    assert undo_paths(file) == []


def test_a_file_that_changes_meanwhile(file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def touched(*_: object, **__: object) -> str:
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
        return "proved"

    monkeypatch.setattr("gguf_tools.api.edit.prove_loads", touched)
    for options in ({"out": tmp_path / "out.gguf"}, {"in_place": True}):
        with pytest.raises(CheckpointError, match="changed while it was read"):
            edit(file, values={"general.name": "n" * 99}, **options)
    assert list(tmp_path.iterdir()) == [file]


def test_names_by_which_llama_cpp_knows_a_model(file: Path) -> None:
    """Under such a name llama.cpp tokenizes differently (`tokenizers.model_name`), or does not load the vocabulary."""
    with pytest.raises(UnsupportedError, match="not after this edit"):
        edit(file, values={"general.name": "my-phi3"}, in_place=True)
    (note,) = edit(file, values={"general.name": "ModernBERT of mine: Modern-BERT"}, dry_run=True).notes
    assert "recognises Phi-3 or ModernBERT by a name as the new one" in note
    assert edit(file, values={"general.name": "phi 3"}, in_place=True).notes == ()


def test_the_shell_completes_keys_and_tensors(file: Path) -> None:
    def completed(*line: str) -> list[str]:
        complete = ShellComplete(cli.tinyq, {}, "tinyq", "_TINYQ_COMPLETE")
        return [item.value for item in complete.get_completions(["edit", *line[:-1]], line[-1])]

    assert completed(str(file), "--unset", "qwen3.context") == ["qwen3.context_length"]
    assert completed(str(file), "--set", "qwen3.context") == ["qwen3.context_length="]
    assert completed(str(file), "--set", "qwen3.context_length=") == []
    assert completed(str(file), "--rename-tensor", "blk.1.attn_q.") == ["blk.1.attn_q.weight="]
    assert completed(f"{file}.not", "--unset", "q") == []


def test_the_file_is_read_after_an_edit(file: Path) -> None:
    edit(file, values={"general.name": "Renamed"}, in_place=True)
    assert "Renamed" in str(inspect(file))
