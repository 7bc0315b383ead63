"""Opening checkpoints: folders in Hugging Face layout, safetensors files and torch state dicts.

Headers are read and checked when a checkpoint is opened, tensor data only when it is used.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gguf_tools.errors import CheckpointError, InputError, UnsupportedError
from gguf_tools.formats.digest import FileDigest, file_digest
from gguf_tools.formats.links import refuse_links_out
from gguf_tools.formats.llama2c import is_llama2c, read_llama2c
from gguf_tools.formats.plain_yaml import read_plain_yaml
from gguf_tools.formats.remote import attached_in, present
from gguf_tools.formats.safetensors import read_safetensors
from gguf_tools.formats.state_dict import SUFFIXES, read_state_dict, state_dict_files
from gguf_tools.formats.text_file import Kind, parse_json, read_text
from gguf_tools.sources.adapters.adapter import Adapter, GivenAdapter, is_adapter, open_adapter
from gguf_tools.sources.adapters.config import CONFIG as ADAPTER_CONFIG
from gguf_tools.sources.consolidated import consolidated_files, is_one_of_several, join_shards
from gguf_tools.sources.inputs import beside_files
from gguf_tools.sources.names import plain_names
from gguf_tools.sources.packing import Packing
from gguf_tools.sources.shards import merge_shards
from gguf_tools.tensors.base import Tensor
from gguf_tools.text import shortened

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
TORCH_INDEX = "pytorch_model.bin.index.json"
TORCH_SINGLE = "pytorch_model.bin"
PLACES = (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX)
"""Where transformers looks for weights, in its order: the first that exists is read, the others are ignored."""
CONFIG = "config.json"
PARAMS = "params.json"
"""Meta's name for the config."""
LIT, LIT_CONFIG = "lit_model.pth", "model_config.yaml"
"""litgpt's names for weights and config; the config.json in such a folder is of the model that it was made from."""
DESCRIPTION = "tinyq.toml"
"""The name of a description of the tensors, for a decoder that no family knows."""
MARKS = (CONFIG, DESCRIPTION)
"""Files by which the folder of a checkpoint is known, among those that tinyq writes."""
STEP = re.compile(r"model_(\d+)\.pt")
"""nanochat's name of the weights after some step; its config is in meta_NNNNNN.json under `META_KEY`."""
META_KEY = "model_config"
CONTEXT_KEYS = ("max_position_embeddings", "max_seq_len")
BY_FILE = "files:"
"""How a digest begins that is made from those of the files, which a hub states for files that are not on this machine."""


@dataclass(frozen=True)
class DescriptionText:
    """The text of a description of the tensors (`gguf_tools.description`), and the file that it was read from."""

    path: Path
    text: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint's tensors by their own names, its config and its files; tensor data is read lazily.

    `path` is the folder or file that was opened; `metadata` is safetensors' `__metadata__`; `buffers` are tensors that are
    computed rather than learned, separated from the weights by `gguf_tools.sources.restore`; `notes` are sentences for the
    user about what was left out or restored. `replaced` maps the config keys that the user overrode to the file's own values
    (None if it has none). `packings` are the formats that weights were unpacked from. `description` says what the tensors are,
    for a decoder that no family knows. `adapters` are to be merged by `gguf_tools.sources.restore`, which moves them to `merged`.
    """

    path: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    metadata: Mapping[str, str]
    notes: tuple[str, ...] = ()
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    replaced: Mapping[str, Any] = field(default_factory=dict)
    packings: tuple[Packing, ...] = ()
    description: DescriptionText | None = None
    adapters: tuple[Adapter, ...] = ()
    merged: tuple[Adapter, ...] = ()

    @property
    def config_file(self) -> Path:
        """The file with the config: config.json, params.json or litgpt's, else the file of weights that contains it."""
        stated = _config_path(self.folder, self.weight_files)
        if stated is None and self.config and len(self.weight_files) == 1:
            return self.weight_files[0]
        return stated or self.folder / CONFIG

    @property
    def folder(self) -> Path:
        """The folder of config, tokenizer and model card: the opened folder, or the opened file's."""
        return self.path if self.path.is_dir() else self.path.parent

    def with_context_length(self, tokens: int) -> Checkpoint:
        """The checkpoint with the context length (in tokens) overridden, under all keys that families read."""
        stated = {key: self.config.get(key) for key in CONTEXT_KEYS}
        return replace(self, config={**self.config, **dict.fromkeys(CONTEXT_KEYS, tokens)}, replaced=stated)

    def described(self, path: Path, text: str | None = None) -> Checkpoint:
        """The checkpoint with the description in the file `path`, or with `text` as its description, which `path` holds."""
        stated = read_text(path, Kind.CONFIG, InputError) if text is None else text
        return replace(self, description=DescriptionText(path, stated))

    def adapted(self, given: Iterable[GivenAdapter]) -> Checkpoint:
        """The checkpoint with these adapters to be merged; errors as `open_adapter`."""
        return self.adapted_with(map(open_adapter, given))

    @property
    def adapter_identity(self) -> tuple[tuple[str, float], ...]:
        """Digest and scale of each adapter, merged or to be merged."""
        return tuple((adapter.digest, adapter.scale) for adapter in (*self.merged, *self.adapters))

    def adapted_with(self, adapters: Iterable[Adapter]) -> Checkpoint:
        """The checkpoint with these opened adapters to be merged."""
        return replace(self, adapters=(*self.adapters, *adapters))

    @property
    def own_config(self) -> Mapping[str, Any]:
        """The config without the keys that the user gave."""
        return {key: value for key, value in self.config.items() if key not in self.replaced}

    @property
    def context_length(self) -> int | None:
        """The context length (in tokens) that the user gave in place of the config's, or None."""
        return self.config[CONTEXT_KEYS[0]] if self.replaced else None

    def digest(self, cancelled: Callable[[], bool] = lambda: False) -> str:
        """`BY_FILE` and the SHA-256 over the names and SHA-256 of config and weight files; meaningless once `cancelled` is true.

        Raises CheckpointError if a file can no longer be read.
        """
        total = FileDigest()
        for path in self._digested:
            with _still_read(path):
                total.add(f"{path.name}\0{file_digest(path, cancelled)}\n".encode("utf-8", "surrogateescape"))
        return BY_FILE + total.hexdigest()

    def has_digest(self, recorded: str) -> bool:
        """Whether a recorded digest is this checkpoint's: one of `digest`, or of older files, over the names and bytes.

        Raises CheckpointError if a file can no longer be read.
        """
        if recorded.startswith(BY_FILE):
            return recorded == self.digest()
        total = FileDigest()
        for path in self._digested:
            total.add(path.name.encode("utf-8", "surrogateescape") + b"\0")
            with _still_read(path):
                total.add_file(path)
        return recorded == total.hexdigest()

    @property
    def _digested(self) -> tuple[Path, ...]:
        """The files that a digest is of: the config, unless it is in the weights, and the weights."""
        config = self.config_file
        stated = (config,) if config.exists() and config not in self.weight_files else ()
        return (*stated, *self.weight_files)


@contextlib.contextmanager
def _still_read(path: Path) -> Iterator[None]:
    """A block that reads a file which was opened before. Raises CheckpointError for an OSError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: can no longer be read ({error.strerror}); run the command again") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError, naming file, line and column, if it is broken or not an object."""
    data = parse_json(read_text(path, Kind.INDEX if path.name in (INDEX, TORCH_INDEX) else Kind.CONFIG), path)
    if not isinstance(data, dict):
        raise CheckpointError(
            f"{path}: holds a JSON {type(data).__name__}; expected an object; correct it or download it again"
        )
    return data


def open_checkpoint(path: Path, *, described: bool = False) -> Checkpoint:
    """Open a folder in Hugging Face layout, or a single file of weights.

    The weights of a folder are those that transformers would read (`PLACES`), one file or shards with an index; failing that,
    the folder's only safetensors file, else its only torch state dict. config.json is required in a folder of safetensors and
    optional for torch state dicts and single files, and where the tensors are `described`. Prefixes that training wrappers add
    to names are removed (`names`). A description beside the weights (`DESCRIPTION`) is read too.

    Raises CheckpointError naming the file, tensor or key that is missing or broken, or a symbolic link out of the folder other
    than those of Hugging Face's cache.
    """
    if not present(path):
        raise CheckpointError(
            f"{path}: no such file or folder; give a folder with config.json and weights, or a file of weights"
        )
    refuse_links_out(path if path.is_dir() else path.parent, beside_files(path))
    if path.is_file() and is_one_of_several(path):
        raise CheckpointError(f"{path}: is one of several shards of a model; give the folder {path.parent}")
    beside = (path if path.is_dir() else path.parent) / DESCRIPTION
    described = described or beside.exists()
    opened = _with_plain_names(_open_folder(path, described) if path.is_dir() else _open_file(path))
    return opened.described(beside) if beside.exists() else opened


def _open_folder(path: Path, described: bool) -> Checkpoint:
    """The checkpoint of a folder, from the first of `PLACES` that exists, with a note on the others that exist."""
    found = [name for name in PLACES if present(path / name)]
    _refuse_adapter(path, found)
    if not found:
        shards = consolidated_files(path)
        return _open_consolidated(path, shards) if shards else _open_only(path, described)
    taken = found[0]
    refuse_links_out(path, [path / taken])
    sharded = taken in (INDEX, TORCH_INDEX)
    opened = _open_sharded(path, path / taken) if sharded else replace(_open_file(path / taken), path=path)
    if taken in (SINGLE, INDEX) and not described:
        read_json(path / CONFIG)  # required: safetensors do not describe the model
    left = [name for name in found[1:] if not (name == TORCH_INDEX and TORCH_SINGLE in found)]
    if not left:
        return opened
    note = f"{taken} is read, as transformers does; other weights in the folder are ignored ({', '.join(left)})"
    return replace(opened, notes=(*opened.notes, note))


def _open_only(path: Path, described: bool) -> Checkpoint:
    """The checkpoint of a folder without weights under the usual names: its only safetensors file, or its only state dict."""
    remote = (other for other in attached_in(path) if other.suffix == ".safetensors")
    found = sorted({*path.glob("*.safetensors"), *remote})
    files = state_dict_files(path)
    files = [file for file in files if STEP.fullmatch(file.name)] or files
    if not found and files:
        if len(files) > 1:
            names = ", ".join(file.name for file in files[:4])
            raise CheckpointError(
                f"{path}: holds {len(files)} torch files ({names}); expected one; give the file to convert"
            )
        refuse_links_out(path, files)
        return replace(_open_file(files[0]), path=path)
    if not (path / PARAMS).exists() and not described:
        read_json(path / CONFIG)
    if len(found) == 1:
        refuse_links_out(path, found)
        return replace(_open_file(found[0]), path=path)
    if any(path.glob("*.distcp")):
        raise CheckpointError(
            f"{path}: is a distributed checkpoint of torch (.distcp); convert it to one file with "
            "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch` and give that"
        )
    what = f"{len(found)} safetensors files without {INDEX}" if found else "no safetensors weights"
    raise CheckpointError(f"{path}: holds {what}; expected {SINGLE} or shards with {INDEX}; download the missing files")


def _open_consolidated(path: Path, shards: Sequence[Path]) -> Checkpoint:
    """The checkpoint of Meta's shards, each matrix concatenated from its slices."""
    refuse_links_out(path, shards)
    opened = [read_state_dict(shard) for shard in shards]
    tensors = join_shards(shards, [each.tensors for each in opened])
    return Checkpoint(
        path=path, config=_config_beside(path, shards), tensors=tensors, weight_files=tuple(shards), metadata={}
    )


def _config_path(folder: Path, weights: Sequence[Path]) -> Path | None:
    """The file with the config of these weights, or None if there is none."""
    if len(weights) == 1 and (step := STEP.fullmatch(weights[0].name)) and (folder / f"meta_{step[1]}.json").exists():
        return folder / f"meta_{step[1]}.json"
    names = (LIT_CONFIG, CONFIG, PARAMS) if any(path.name == LIT for path in weights) else (CONFIG, PARAMS)
    return next((folder / name for name in names if (folder / name).exists()), None)


def _config_beside(folder: Path, weights: Sequence[Path]) -> dict[str, Any]:
    """The config of these weights, from its own file; empty if there is none."""
    stated = _config_path(folder, weights)
    if stated is None:
        return {}
    if stated.name.startswith("meta_"):
        config = read_json(stated).get(META_KEY)
        if not isinstance(config, dict):
            raise CheckpointError(f"{stated}: has no object {META_KEY}, which describes the model; download it again")
        return config
    return read_plain_yaml(stated) if stated.name == LIT_CONFIG else read_json(stated)


def _with_plain_names(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with wrapper prefixes removed from tensor names, including names in safetensors' metadata."""
    aliases = {name: kept for name, kept in checkpoint.metadata.items() if kept in checkpoint.tensors}
    plain, notes = plain_names(checkpoint.path, dict.fromkeys((*checkpoint.tensors, *aliases)))
    if not notes:
        return checkpoint
    return replace(
        checkpoint,
        tensors={plain[name]: tensor for name, tensor in checkpoint.tensors.items()},
        metadata={plain.get(name, name): plain.get(kept, kept) for name, kept in checkpoint.metadata.items()},
        notes=(*checkpoint.notes, *notes),
    )


def _open_file(path: Path) -> Checkpoint:
    """The checkpoint of one file of weights, with the config of its folder if there is one.

    Raises CheckpointError for files of other formats.
    """
    config = _config_beside(path.parent, [path])
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return Checkpoint(path=path, config=config, tensors=tensors, weight_files=(path,), metadata=metadata)
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f"{path}: is neither safetensors nor a torch state dict ({', '.join(SUFFIXES)}); give such a file, or a folder "
            "with config.json and the weights"
        )
    if path.suffix == ".bin" and is_llama2c(path):
        exported = read_llama2c(path)
        return Checkpoint(
            path=path, config=exported.config, tensors=exported.tensors, weight_files=(path,), metadata={}
        )
    found = read_state_dict(path)
    notes = (f"{path.name} also holds {', '.join(found.left_out)}: left out",) if found.left_out else ()
    # The config saved inside the file takes precedence over config.json.
    return Checkpoint(
        path=path,
        config={**config, **found.config},
        tensors=found.tensors,
        weight_files=(path,),
        metadata={},
        notes=notes,
    )


def _refuse_adapter(path: Path, weights: Sequence[str]) -> None:
    if weights or not is_adapter(path):
        return
    base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path")
    named = f", trained on {shortened(str(base))}" if base else ""
    raise UnsupportedError(
        f"{path}: is an adapter ({ADAPTER_CONFIG}){named}, not a model; merge it into its base with `tinyq convert BASE OUT.gguf "
        f"--lora {path}`, or convert it alone with `tinyq convert {path} OUT.gguf --base BASE`"
    )


def _open_sharded(path: Path, index: Path) -> Checkpoint:
    """The checkpoint of an index and its shards. Raises CheckpointError unless each shard is a file in the same folder."""
    config = read_json(path / CONFIG)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    shards: dict[str, Mapping[str, Tensor]] = {}
    metadata: dict[str, str] = {}
    texts = {shard for shard in weight_map.values() if isinstance(shard, str)}
    for shard in sorted(set(map(str, weight_map.values()))):
        # The name is untrusted: it must not be a path out of the folder.
        if shard not in texts or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(
                f"{index}: names the shard {shortened(repr(shard))}; expected a plain file name; download it again"
            )
        if not present(path / shard):
            raise CheckpointError(f"{path / shard}: missing, though {index.name} lists it as a shard; download it")
        refuse_links_out(path, [path / shard])
        opened = _open_file(path / shard)
        shards[shard] = opened.tensors
        metadata |= opened.metadata
    merged, notes = merge_shards(path, index, weight_map, shards, config)
    files = tuple(path / shard for shard in shards)
    return Checkpoint(path=path, config=config, tensors=merged, weight_files=files, metadata=metadata, notes=notes)
