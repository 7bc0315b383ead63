"""Arguments and options that take a source: a path, or ORG/NAME[@REVISION] on the hub."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_tools.commands.common import progress_bar
from gguf_tools.commands.values import FilePath
from gguf_tools.progress import ByteProgress

if TYPE_CHECKING:
    from gguf_tools.sources.hub import Progress

_DOWNLOAD = "tinyq.download"


class SourcePath(FilePath):
    """A path, or a name on the hub, which becomes the path of a folder or a file in the hub's cache.

    `reading` is the name of a `Reading`: how much of a source on the hub the command needs.
    """

    def __init__(self, reading: str) -> None:
        super().__init__()
        self.reading = reading

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path. Raises HubError for a name that cannot be read from the hub."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if ctx is None or ctx.resilient_parsing or path.exists():
            return path
        from gguf_tools.sources.hub import Reading, local_source

        reading = Reading.WHOLE if self.reading == "streamed" and ctx.meta.get(_DOWNLOAD) else Reading(self.reading)
        return local_source(str(value), reading, _progress(ctx))


def _progress(ctx: click.Context) -> Progress:
    """A progress bar for what is downloaded, unless the command is quiet."""

    def bar(what: str, total: int) -> AbstractContextManager[ByteProgress]:
        return progress_bar(total, what, bool(ctx.params.get("quiet")))

    return bar


headers_source = partial(SourcePath, "headers")
streamed_source = partial(SourcePath, "streamed")
whole_source = partial(SourcePath, "whole")
described_source = partial(SourcePath, "beside")

download_option = click.option(
    "--download",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda context, _, given: context.meta.update({_DOWNLOAD: given}),
    help="Download a source on the hub into its cache before it is read: an interrupted download goes on in the next run, and "
    "later runs need none.",
)
