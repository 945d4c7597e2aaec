"""A tracked run as Python sees it."""

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
    """Returns the id of a run that is given itself or by its id."""
    return run.id if isinstance(run, Run) else run
