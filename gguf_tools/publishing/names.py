"""Names on the hub: of repositories, and of the models that files were made from.

Source: `validate_repo_id` of huggingface_hub.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from gguf_tools.conversion.general_metadata import HUB_PAGES
from gguf_tools.errors import InputError
from gguf_tools.formats.gguf import keys
from gguf_tools.formats.gguf.header import Field
from gguf_tools.sources.checkpoint import CONFIG
from gguf_tools.sources.hub import cached_name
from gguf_tools.tokenizers.files import read_object

_REPO_ID = re.compile(r"(\w([\w.-]{0,94}\w)?/)?\w([\w.-]{0,94}\w)?", re.ASCII)
_BASE_MODEL = re.compile(r"general\.base_model\.\d+\.repo_url")


def is_repo_id(text: str) -> bool:
    """Whether the hub accepts a name as that of a repository: NAME or OWNER/NAME."""
    return bool(_REPO_ID.fullmatch(text)) and not any(bad in text for bad in ("--", "..")) and not text.endswith(".git")


def is_full_id(text: str) -> bool:
    """Whether the hub accepts a name as that of a repository with its owner: OWNER/NAME."""
    return "/" in text and is_repo_id(text)


def check_names(base_model: str | None, quantized_by: str | None) -> None:
    """Raise InputError for a name, given by the user, that the hub does not accept."""
    if quantized_by is not None and not quantized_by.isprintable():
        raise InputError(f"--quantized-by is {quantized_by!r}; expected a name of printable characters")
    if base_model is not None and not is_full_id(base_model):
        raise InputError(f"--base-model is {base_model!r}; expected a hub id (owner/name)")


def base_models_of(source: Path, metadata: Mapping[str, Field]) -> tuple[str, ...]:
    """Ids on the hub of the files' base models: the source's own if it is known, else those in the metadata."""
    recorded = metadata.get(keys.SOURCE_REPOSITORY)
    own = _hub_id(source) or (recorded.value if recorded else None)
    if isinstance(own, str) and is_full_id(own):
        return (own,)
    urls = [field.value for key, field in metadata.items() if _BASE_MODEL.fullmatch(key)]
    ids = [url.removeprefix(HUB_PAGES) for url in urls if isinstance(url, str) and url.startswith(HUB_PAGES)]
    return tuple(found for found in ids if is_full_id(found))


def _hub_id(source: Path) -> str | None:
    """The source's id on the hub: from its path in the hub's cache, or from its config."""
    if on_hub := cached_name(source):
        return on_hub.repository
    config = source / CONFIG
    name = read_object(config).get("_name_or_path") if config.is_file() else None
    return name if isinstance(name, str) and is_full_id(name) and not Path(name).exists() else None
