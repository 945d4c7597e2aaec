"""What `lit-cnn describe` prints: layers or stages, totals, the paper's figures, or two networks side by side."""

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_cnn.core.files import size_in_words
from lit_cnn.models.describe import TOTALS, Description, Layer, Stage


def render(description: Description, console: Console) -> None:
    """Prints the layers, or the stages if they were asked for, and the totals beside the paper's figures."""
    rows: list[tuple[str, ...]]
    if description.stages is None:
        titles = ["layer", "type", "output", "parameters", "multiply-adds"]
        rows = [(x.name, x.type, _shape(x.output_shape), *_numbers(x)) for x in description.layers]
    else:
        titles = ["stage", "layers", "output", "parameters", "multiply-adds"]
        rows = [(str(x.number), _span(x.layers), _shape(x.output_shape), *_numbers(x)) for x in description.stages]
    total = ("total", "", "", *(f"{description.totals[name]:,}" for name in ("parameters", "multiply_adds")))
    _print(console, _heading(description))
    _print_grid(console, titles, [*rows, total], left=2)
    titles = ["", "here", "paper", "difference"] if description.paper else ["", "here"]
    rows = []
    for name in TOTALS:
        ours, papers = description.totals[name], description.paper.get(name)
        beside = (f"{papers:,.0f}", _difference(ours, papers)) if isinstance(papers, int | float) else ("", "")
        rows.append((_title(name), _amount(name, ours), *beside)[: len(titles)])
    _print_grid(console, titles, rows)
    if source := description.paper.get("source"):
        _print(console, f"paper: {source}")
    _print(console, "multiply-adds and float32 activations for one image")
    if description.stages is None and any(layer.output_shape is None for layer in description.layers):
        _print(
            console, "output -: not called in evaluation, as a side branch, or its weights are read by another layer"
        )


def render_comparison(first: Description, second: Description, console: Console) -> None:
    """Prints the totals of two architectures side by side with their ratio."""
    rows: list[tuple[str, ...]] = []
    for name in TOTALS:
        ours, theirs = first.totals[name], second.totals[name]
        rows.append(
            (_title(name), _amount(name, ours), _amount(name, theirs), f"{ours / theirs:,.3f}" if theirs else "-")
        )
    for description in (first, second):
        _print(console, _heading(description))
    _print_grid(console, ["", first.arch, second.arch, "ratio"], rows)


def _print_grid(console: Console, titles: list[str], rows: list[tuple[str, ...]], left: int = 1) -> None:
    """Prints a table whose first `left` columns may be folded, and whose others hold numbers."""
    grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, title in enumerate(titles):
        options: dict[str, Any] = {"overflow": "fold"} if number < left else {"justify": "right", "no_wrap": True}
        grid.add_column(Text(title), **options)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row), style="bold" if row[0] == "total" else None)
    console.print(grid)


def _print(console: Console, line: str) -> None:
    console.print(Text(line))


def _heading(description: Description) -> str:
    least = description.least_image_size
    sizes = f"made for {description.native_image_size} px" + (f", takes {least} px or more" if least else "")
    shape = _shape((description.in_channels, description.image_size, description.image_size))
    return f"{description.arch}: image {shape}, {description.num_classes} classes ({sizes})"


def _numbers(part: Layer | Stage) -> tuple[str, str]:
    return f"{part.parameters:,}", f"{part.multiply_adds:,}"


def _shape(shape: tuple[int, ...] | None) -> str:
    return " x ".join(map(str, shape)) if shape is not None else "-"


def _span(layers: tuple[str, ...]) -> str:
    return layers[0] if len(layers) == 1 else f"{len(layers)}: {layers[0]} to {layers[-1]}"


def _amount(name: str, total: int) -> str:
    return size_in_words(total) if name.endswith("_bytes") else f"{total:,}"


def _difference(ours: int, papers: float) -> str:
    return f"{ours - papers:+,.0f} ({(ours - papers) / papers:+.2%})"


def _title(name: str) -> str:
    return name.replace("multiply_adds", "multiply-adds").replace("activation_bytes", "activations")
