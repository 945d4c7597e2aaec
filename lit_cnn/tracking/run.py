"""A tracked run as Python sees it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """A run that has come to its end: what `lit_cnn.fit`, `lit_cnn.soup` and the like return.

    Attributes:
        id: MLflow's id, or our key where the store has not taken the run yet; functions take it, a prefix will do.
        name: `{arch}_{transfer}_{dataset}[_{recipe}]`.
        metrics: The best epoch's as `best/val/acc` and so on, the test's as `test/acc`.
        checkpoint: The best checkpoint; None where none was written.
        children: The runs of a parent, one a seed, in order.
        is_sent: Whether the store has all of it; else it is kept here, and `lit-cnn sync` sends it.
        seconds: How long a child took, test and sending included; None where nobody has measured it.
        summary: What it came to, in a few sentences, one a line; "" for a run of a kind that has none.
        report: The page that shows it, with its pictures beside it; None where none was made.

    Example:
        >>> run.name, run.metrics["test/acc"] > 0.5
        ('lenet5_scratch_digits', True)
    """

    id: str
    name: str
    metrics: Mapping[str, float]
    checkpoint: Path | None = None
    children: tuple["Run", ...] = field(default=(), repr=False)
    is_sent: bool = True
    seconds: float | None = None
    summary: str = field(default="", repr=False)
    report: Path | None = None


def id_of(run: Run | str) -> str:
    """Returns the id of a run that is given itself or by its id, `runs:/` before it or not."""
    return run.id if isinstance(run, Run) else run.removeprefix("runs:/")


def run_in(text: str) -> str | None:
    """Returns the id in what may name a run or a file, with what follows it, such as `/2`; None if it names no run.

    `runs:/ID` always does; an id, or its first 6 characters or more, where no file is called so.
    """
    if text.startswith("runs:/"):
        return text.removeprefix("runs:/")
    is_id = re.fullmatch(r"[0-9a-f]{6,32}(/\d+)?", text) and not Path(text).exists()
    return text if is_id else None
