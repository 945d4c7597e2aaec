"""Tables of results in terminals of several widths."""

import io

import pytest
from rich.console import Console

from lit_cnn.reports.result import text_grid

TITLES = ("Model", "Models\nx crops", "Passes", "Test % [95 %]", "Difference [95 %]", "p", "p Holm")
NAMES = ("224 px · 20 epochs · seed 0", "ensemble of 3")
ROWS = [(name, "1 x 10", "10", "98.61 [96.78, 99.40]", "-4.46 [-6.69, -2.51]", "<0.001", "<0.001") for name in NAMES]


@pytest.mark.parametrize(("width", "is_folded"), [(80, True), (100, False), (150, False)])
def test_a_table_keeps_names_and_numbers_whole_at_any_width(width: int, is_folded: bool) -> None:
    console = Console(width=width, file=io.StringIO())
    console.print(text_grid(TITLES, ROWS, [False, True], "Passes: forward passes an image."))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width and "…" not in "".join(lines)
    together = " ".join(" ".join(lines).split())
    assert all(part in together for part in ("98.61", "[96.78, 99.40]", "-4.46", "[-6.69, -2.51]", "<0.001"))
    assert ("98.61 [96.78, 99.40]" in together) is not is_folded
    end = next(line for line in lines if "1 x 10" in line).index("1 x 10")
    names = "".join(line[:end] for line in lines if "─" not in line).replace(" ", "")
    assert all(name.replace(" ", "") in names for name in NAMES)
    assert len(lines) < 15
