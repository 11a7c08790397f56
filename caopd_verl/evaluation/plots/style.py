"""The look that all plots share: one column of 3.4 inches (8.6 cm) at 300 dpi, 7-8 pt text.

Colours are the Okabe-Ito palette, which is safe for colour-blind readers; series differ in marker
and line style as well. Nothing is drawn through `pyplot`, whose figures stay in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from caopd_verl.errors import DataError

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (0, (4, 3))
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
WIDTH = 3.4  # inches: one column of a two-column page
STYLE: dict[Any, Any] = {
    "font.size": 7.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "savefig.dpi": 300,
}
GREY, LIGHT = "#555555", "#DDDDDD"
NOTE_BOX: dict[str, Any] = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1.0}

# Of the intervals that plots draw. The seed is fixed: the same rows give the same picture.
LEVEL, SEED = 0.95, 0


def require_rows(n_scored: int, n: int, path: str | Path) -> None:
    """Raise `DataError` where none of `n` rows carries a confidence; `path` is of the plot."""
    if not n_scored:
        raise DataError(
            f"none of the {n} rows carries a confidence: there is nothing to draw",
            where=str(path),
        )


def save(figure: Figure, path: str | Path) -> Path:
    """Write `figure` to `path`, whose folders are made, and return the path.

    The path's ending chooses the format: PNG, SVG, PDF, or what else matplotlib writes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path
