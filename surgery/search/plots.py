"""A study and a profile as pictures, drawn by matplotlib, which is an extra (`plots`)."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gguf_tools.errors import InputError
from gguf_tools.formats.output import atomic_output, check_outputs
from gguf_tools.formats.scratch import working_folder
from surgery.search.leaderboard import Board
from surgery.search.page import Heatmap, heatmaps
from surgery.search.profile import Profile


@contextmanager
def _pyplot() -> Iterator[Any]:
    """matplotlib without a screen, its caches in a folder that is removed; InputError where it is not installed."""
    with working_folder("tinyq-plots") as folder:
        os.environ.setdefault("MPLCONFIGDIR", str(folder))
        # It warns on stderr where it cannot write its caches, which are not needed.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
        try:
            import matplotlib

            matplotlib.use("Agg")
            from matplotlib import pyplot
        except ImportError as error:
            raise InputError(
                "--png needs matplotlib, which is not installed; pip install 'tinyq-gguf[plots]'"
            ) from error
        yield pyplot


def plot_paths(board: Board, folder: Path) -> list[Path]:
    """The paths of the pictures in `folder`: the objective against size, and each heatmap."""
    return [folder / "size.png", *(folder / f"heatmap-{n}.png" for n in range(1, len(heatmaps(board)) + 1))]


def write_plots(board: Board, folder: Path, *, force: bool = False) -> list[Path]:
    """Write the objective against size, and each heatmap, as PNGs into a folder, which is made if need be.

    OutputError where one exists without `force`, InputError where matplotlib is missing.
    """
    with _pyplot() as pyplot:
        drawn = [_scatter(pyplot, board), *(_heatmap(pyplot, found) for found in heatmaps(board))]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = dict(zip(plot_paths(board, folder), drawn, strict=True))
    check_outputs({f"--png {path.name}": path for path in pictures}, (), force=force)
    for path, data in pictures.items():
        with atomic_output(path, force=force) as stream:
            stream.write(data)
    return list(pictures)


def profile_plot(profile: Profile) -> bytes:
    """The three measures by layer, each in a panel, as a PNG."""
    panels = {
        "update norm": [layer.update_norm for layer in profile.layers],
        "block influence": [layer.influence for layer in profile.layers],
        "angle / π": [layer.angle for layer in profile.layers],
    }
    with _pyplot() as pyplot:
        return _panels(pyplot, panels)


def _panels(pyplot: Any, panels: Mapping[str, Sequence[float]]) -> bytes:
    """Bars by layer, a panel for each measure."""
    figure, axes = pyplot.subplots(len(panels), 1, sharex=True, figsize=(7, 6))
    for axis, (name, values) in zip(axes, panels.items(), strict=True):
        axis.bar(range(len(values)), values)
        axis.set_ylabel(name)
        # The first layer's update of the small embeddings would flatten the others.
        rest = [value for value in values[1:] if value == value]
        axis.set_ylim(0, 1.15 * max(rest, default=1.0) or 1.0)
    axes[-1].set_xlabel("layer")
    return _png(pyplot, figure)


def _scatter(pyplot: Any, board: Board) -> bytes:
    """The first objective against the size in megabytes."""
    figure, axis = pyplot.subplots(figsize=(7, 4))
    lines = board.drawn
    for line in lines:
        marker = "s" if line.record.entry.always else "o"
        axis.plot(
            [(line.bytes or 0) / 1e6], [line.values[0]], marker, color="C0" if line.name in board.front else "0.6"
        )
        if line.record.entry.always or line.rank == 1:
            axis.annotate(line.name, ((line.bytes or 0) / 1e6, line.values[0]), fontsize=7)
    axis.set_xlabel("size of the file in MB")
    axis.set_ylabel(board.objectives[0].name)
    return _png(pyplot, figure)


def _heatmap(pyplot: Any, found: Heatmap) -> bytes:
    """Losses against the base, symmetric around 0; fields that were not measured are blank."""
    values = [
        [found.cells[n, m].loss if (n, m) in found.cells else float("nan") for m in range(len(found.columns))]
        for n in range(len(found.rows))
    ]
    most = max(abs(cell.loss) for cell in found.cells.values()) or 1.0
    figure, axis = pyplot.subplots(figsize=(7, max(2.0, 0.22 * len(found.rows) + 1.5)))
    drawn = axis.imshow(values, cmap="RdYlGn_r", vmin=-most, vmax=most, aspect="auto")
    axis.set_yticks(range(len(found.rows)), found.rows, fontsize=7)
    axis.set_xticks(range(len(found.columns)), found.columns, fontsize=7)
    axis.set_title(found.title, fontsize=9)
    figure.colorbar(drawn, label="loss against the base")
    return _png(pyplot, figure)


def _png(pyplot: Any, figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.tight_layout()
    figure.savefig(stream, format="png", dpi=120)
    pyplot.close(figure)
    return stream.getvalue()
