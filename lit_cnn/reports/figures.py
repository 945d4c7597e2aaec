"""Pictures: how they are begun, coloured and written."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.core.files import replace_atomically
from lit_cnn.core.fonts import set_fonts, without_middle

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE_COLOR, MEMBER_COLOR = "#c2410c", "#9aa5b1"


def new_figure(width: float, height: float) -> tuple["Figure", "Axes"]:
    """Returns an empty picture of so many inches, 150 px each, and its axes."""
    # Not pyplot: it keeps every figure alive and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_png(figure: "Figure", path: Path) -> None:
    """Writes a picture as PNG; a file that is there is replaced whole. Its texts are taken literally."""
    set_fonts(figure)
    with replace_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def svg_of(figure: "Figure", salt: str) -> str:
    """Returns a picture as an `<svg>` element; `salt` tells its names from those of another on the same page."""
    import matplotlib

    set_fonts(figure, spell_out=False)
    text = io.StringIO()
    # Letters as text, not as outlines: small, searchable; and no date, so that the same table gives the same page.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": f"lit_cnn {salt}"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a browser has fonts of its own
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def legend_columns(labels: Sequence[str], width: float, most: int = 4) -> int:
    """Returns how many columns of a legend of 9 points fit into so many inches: at least 1."""
    longest = max(map(len, labels), default=1)
    return max(1, min(most, int(width * 72 / (5.2 * longest + 40))))


def shortened(name: str) -> str:
    """Returns a name as a legend has it: one line of 48 letters at most."""
    name = without_middle(" ".join(name.splitlines()), 48)
    # matplotlib leaves what begins with an underscore out of legends; the mark before it is invisible.
    return f"\u200e{name}" if name.startswith("_") else name
