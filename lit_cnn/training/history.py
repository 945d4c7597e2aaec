"""How a run went, read from its journal: metrics by epoch, and how long it took, resumed or not."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from lit_cnn.tracking.journal import read_journal

CURVES = ("train/loss", "val/loss", "train/acc", "val/acc")


@dataclass(frozen=True)
class History:
    """How a run went.

    Attributes:
        curves: Metric -> epochs, from 1, and values; what was logged within an epoch stands between two numbers.
        epoch_seconds: Median over the epochs, validation included; None if there were fewer than two.
        seconds: Of the whole run so far, without the time between an end and a resume.
    """

    curves: dict[str, tuple[list[float], list[float]]]
    epoch_seconds: float | None
    seconds: float


def read_history(folder: Path, num_epochs: int) -> History:
    """Reads the journal of a run.

    Args:
        folder: The run's.
        num_epochs: How many epochs it has trained, those before a checkpoint that it went on from included.
    """
    rows: dict[str, dict[int, float]] = {name: {} for name in CURVES}
    ended: list[int | None] = []  # milliseconds at the ends of epochs; None where a process ended
    trained, began, last = 0, 0, 0  # milliseconds
    for record, _ in read_journal(folder):
        if record["kind"] == "header":
            began = last = record["created"]
        elif record["kind"] == "attempt":
            trained += last - began
            began = last = record["time"]
            ended.append(None)
        elif record["kind"] == "metrics":
            last = max(last, record["time"])
            for name in rows.keys() & record["values"].keys():
                rows[name].setdefault(record["step"], record["values"][name])
            if "train/loss" in record["values"]:
                ended.append(record["time"])
    spans = [after - before for before, after in pairwise(ended) if before and after]
    return History(
        by_epoch(rows, num_epochs),
        float(np.median(spans)) / 1000 if spans else None,
        (trained + last - began) / 1000,
    )


def by_epoch(rows: Mapping[str, Mapping[int, float]], num_epochs: int) -> dict[str, tuple[list[float], list[float]]]:
    """Returns epochs, from 1, and values of metrics by step.

    Args:
        rows: Metric -> step -> value; the last step of each epoch is that of `train/loss`.
        num_epochs: How many epochs have been trained, those before a checkpoint that a run went on from included.
    """
    ends = sorted(rows["train/loss"])
    return {name: _by_epoch(of_metric, ends, num_epochs) for name, of_metric in rows.items()}


def read_validations(folder: Path, *names: str) -> list[list[float]]:
    """Returns metrics of each validation of a run, in their order: a list for each name; empty if it was not logged."""
    rows: dict[str, dict[int, float]] = {name: {} for name in names}
    for record, _ in read_journal(folder):
        if record["kind"] == "metrics":
            for name in rows.keys() & record["values"].keys():
                rows[name].setdefault(record["step"], record["values"][name])
    return [[value for _, value in sorted(rows[name].items())] for name in names]


def _by_epoch(rows: Mapping[int, float], ends: list[int], num_epochs: int) -> tuple[list[float], list[float]]:
    """Returns epochs and values of (step, value) rows, given the last step of each epoch."""
    steps = sorted(rows)
    if not ends:
        return [], []
    first = max(0, num_epochs - len(ends))
    before = ends[0] - (ends[1] - ends[0]) if len(ends) > 1 else ends[0] - max(1, ends[0] + 1)
    places = np.interp(steps, [before, *ends], np.arange(first, first + len(ends) + 1))
    return places.tolist(), [rows[step] for step in steps]
