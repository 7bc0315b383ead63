"""Sources on a hub (Hugging Face or a mirror of it), by their names ORG/NAME[@REVISION]."""

from gguf_tools.sources.hub.client import HubError
from gguf_tools.sources.hub.names import HubName, cached_name, parse_name, shown_source
from gguf_tools.sources.hub.source import Progress, Reading, kept_source, local_source

__all__ = [
    "HubError",
    "HubName",
    "Progress",
    "Reading",
    "cached_name",
    "kept_source",
    "local_source",
    "parse_name",
    "shown_source",
]
