"""YAML of plain values, as programs write configs: nothing is constructed from tags, and nothing is repeated by reference.

A few lines of YAML can stand for gigabytes (aliases, merge keys) or for objects of Python (tags); both are refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from gguf_tools.errors import CheckpointError
from gguf_tools.formats.text_file import Kind, read_text

_PLAIN = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "map", "seq"))
LARGE = 1 << 64
MOST_CHARACTERS = 1 << 20
"""The YAML parser takes about a second for 100,000 characters; configs have a few thousand."""


def read_plain_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file: text, numbers, truth values, null, and lists and mappings of these.

    Raises CheckpointError, naming the line, where the file is broken, or has a tag, an alias or a merge key.
    """
    text = read_text(path, Kind.CONFIG)
    if len(text) > MOST_CHARACTERS:
        raise CheckpointError(f"{path}: has {len(text):,} characters; expected {MOST_CHARACTERS:,} at most in a config")
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
            value = _value(loader, root, path, set()) if root else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())[:120]
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise CheckpointError(f"{path}: not valid YAML ({where}{reason}); mend or download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a YAML {type(value).__name__}; expected a mapping")
    return value


def _value(loader: yaml.SafeLoader, node: Any, path: Path, seen: set[int]) -> Any:
    """The value of a node; every node may be met once, since an alias is the same node again."""
    if id(node) in seen or node.tag not in _PLAIN:
        what = "an alias (*name)" if id(node) in seen else f"the tag {node.tag}"
        raise CheckpointError(f"{path}: line {node.start_mark.line + 1} has {what}; expected a plain value")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return {str(_value(loader, key, path, seen)): _value(loader, value, path, seen) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_value(loader, item, path, seen) for item in node.value]
    value = loader.construct_object(node)
    if isinstance(value, int) and abs(value) >= LARGE:
        raise CheckpointError(
            f"{path}: line {node.start_mark.line + 1} has a number of more than 64 bits; no setting has that"
        )
    return value
