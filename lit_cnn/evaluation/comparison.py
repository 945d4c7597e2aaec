"""Members alone and combined, with each number of views: the rows of the table."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.data.splits import stratified_order
from lit_cnn.evaluation.calibration import calibration_of
from lit_cnn.evaluation.combining import Answers, Rule, combine, select_greedily
from lit_cnn.evaluation.cost import Cost, Network, cost_of, time_networks
from lit_cnn.evaluation.members import member_names
from lit_cnn.evaluation.mistakes import Verdict
from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.predictions import Member, are_stored, predict_views
from lit_cnn.evaluation.report import Row, Table, build_table
from lit_cnn.tracking.queries import RunInfo

COMBINATIONS = ("mean", "logits", "vote", "greedy")
"""The ways to combine: those of `combining.Rule`, and the mean of members that are selected on val."""

_MANY = 144
_GRID_MODELS = (1, 3, 7)  # Szegedy et al. 2014, table 3


@dataclass(frozen=True)
class Comparison:
    """What is to be compared, and how it is computed.

    Attributes:
        views: Numbers of crops per image, ascending.
        folder: Where logits are stored.
        combine: One of `COMBINATIONS`; what is not the plain mean is shown beside it.
        weights: One for each member, in their order, instead of equal ones.
        calibration: Whether temperatures are fitted, which needs the logits on val.
        latency: Whether forward passes are timed.
        limit_144: With 144 crops use at most that many images of test, and of val, stratified.
        batch_size: Views per forward pass.
        num_workers: Processes that decode images.
    """

    views: Sequence[int]
    folder: Path
    combine: str = "mean"
    weights: Sequence[float] | None = None
    calibration: bool = False
    latency: bool = False
    limit_144: int | None = None
    batch_size: int = 256
    num_workers: int = 2

    @property
    def needs_val(self) -> bool:
        """Whether the members' answers on val are needed beside those on test."""
        return self.calibration or self.combine == "greedy"


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to classify: some of the networks, with weights `(M,)`, under a rule."""

    name: str
    kind: Literal["member", "ensemble", "alternative"]
    weights: np.ndarray
    rule: Rule = "mean"
    run: RunInfo | None = None
    composition: str = ""


def compare(
    runs: Sequence[RunInfo], members: Sequence[Member], comparison: Comparison, beside: Sequence[int] = ()
) -> tuple[Table, Verdict]:
    """Evaluates the members, alone and combined, with each number of views.

    Args:
        runs: The members' runs, best on val first; then those of the alternatives.
        members: The networks, in the same order.
        comparison: What and how.
        beside: How many networks each alternative has, in turn: 1, or several that it takes the mean of.

    Returns:
        The table; and what the combination that was asked for says of each test image with the fewest crops.
    """
    test = _ask(runs, members, "test", comparison)
    val = _ask(runs, members, "val", comparison) if comparison.needs_val else {}
    part = _part(members[0], "test", comparison.limit_144)
    networks = [Network(member.record.parameters, member.record.multiply_adds) for member in members]
    timing = time_networks([member.model for member in members], comparison.views) if comparison.latency else None
    num_members = len(runs) - sum(beside)
    rows: list[Row] = []
    for count in comparison.views:
        for way in [*_ways(runs, comparison, beside, val.get(count)), *_alternatives(runs, beside)]:
            of_part = part if count == _MANY else None
            cost = cost_of(networks, np.flatnonzero(way.weights), count, timing)
            row = _row(way, count, test[count], val.get(count), comparison.calibration, of_part, cost)
            rows.append(replace(row, weights=row.weights[:num_members]))
    grid = [_grid_row(num, count, test[count], part) for num in _grid_models(num_members) for count in comparison.views]
    table = build_table(rows, rows[0], len(members[0].record.class_names), grid)
    fewest = comparison.views[0]
    asked_for = _ways(runs, comparison, beside, val.get(fewest))[-1]
    return table, _verdict(asked_for, members[0], test[fewest], part if fewest == _MANY else None)


def _ask(
    runs: Sequence[RunInfo], members: Sequence[Member], split: Literal["val", "test"], comparison: Comparison
) -> dict[int, Answers]:
    """Returns all members' answers about a split, for each number of views."""
    part = _part(members[0], split, comparison.limit_144)
    probabilities: dict[int, list[np.ndarray]] = {count: [] for count in comparison.views}
    logits: dict[int, list[np.ndarray]] = {count: [] for count in comparison.views}
    targets: np.ndarray | None = None
    for run, member, name in zip(runs, members, member_names(runs), strict=True):
        indices = _by_path(member, split)
        labels = member.data.image_set.labels[indices]
        assert targets is None or np.array_equal(targets, labels), "equal digests, yet other labels"
        targets = labels
        for count, of_views in _logits(member, indices, part, comparison, f"{name}, {split}").items():
            try:
                probabilities[count].append(average_probabilities(of_views))
            except UsageError as error:
                raise UsageError(f"--runs {run.run_id}: {run.name}: {error}") from error
            logits[count].append(of_views.mean(axis=0, dtype=np.float64))
    assert targets is not None
    return {
        count: Answers(
            targets[part] if count == _MANY and part is not None else targets,
            np.stack(probabilities[count]),
            np.stack(logits[count]),
        )
        for count in comparison.views
    }


def _logits(
    member: Member, indices: np.ndarray, part: np.ndarray | None, comparison: Comparison, label: str
) -> dict[int, np.ndarray]:
    how = (comparison.folder, comparison.batch_size, comparison.num_workers, label)
    if part is None or are_stored(member, indices, _MANY, comparison.folder):
        logits = predict_views(member, indices, comparison.views, *how)
        return logits if part is None else {**logits, _MANY: logits[_MANY][:, part]}
    fewer = [count for count in comparison.views if count != _MANY]
    return {
        **predict_views(member, indices, fewer, *how),
        **predict_views(member, indices[part], [_MANY], *how),
    }


def _by_path(member: Member, split: Literal["val", "test"]) -> np.ndarray:
    """Returns the images of a split in the order of their paths: the same for every member."""
    image_set = member.data.image_set
    return np.array(sorted(member.data.splits[split], key=lambda index: image_set.paths[index]))


def _part(member: Member, split: Literal["val", "test"], limit: int | None) -> np.ndarray | None:
    """Returns the places, ascending, of the images that are asked about with 144 crops; None for all."""
    indices = _by_path(member, split)
    if limit is None or limit >= len(indices):
        return None
    # The seed is not the split's: members may differ in that where their data prescribe the split.
    chosen = stratified_order(member.data.image_set, indices, split_seed=0)[:limit]
    return np.flatnonzero(np.isin(indices, chosen))


def _ways(runs: Sequence[RunInfo], comparison: Comparison, beside: Sequence[int], val: Answers | None) -> list[_Way]:
    """Returns the members, the mean of all as the baseline, and the combination that is asked for."""
    num = len(runs) - sum(beside)
    names = member_names(runs)[:num]
    ways = [_Way(name, "member", np.eye(len(runs))[place], run=runs[place]) for place, name in enumerate(names)]

    def add(name: str, weights: np.ndarray, rule: Rule = "mean", composition: str = "") -> None:
        padded = np.concatenate([weights, np.zeros(len(runs) - num)])
        ways.append(_Way(name, "ensemble", padded, rule, composition=composition))

    add(f"ensemble of {num}", np.ones(num))
    if comparison.combine == "greedy":
        assert val is not None
        counts = select_greedily(val.probabilities[:num], val.targets)
        num_selected = np.count_nonzero(counts)
        if num_selected < num:
            # What the same number of forward passes buys without a selection.
            add("top-k ensemble", np.arange(num) < num_selected)
        composition = ", ".join(f"{count} x {name}" for count, name in zip(counts, names, strict=True) if count)
        add("greedy ensemble", counts, composition=composition)
    elif comparison.combine != "mean" or comparison.weights is not None:
        rule = next(rule for rule in ("mean", "logits", "vote") if rule == comparison.combine)
        words = [f"ensemble of {num}"]
        words += {"mean": [], "logits": ["mean of logits"], "vote": ["vote"]}[rule]
        words += ["weighted"] if comparison.weights is not None else []
        weights = np.ones(num) if comparison.weights is None else np.array(comparison.weights)
        add(", ".join(words), weights, rule)
    return ways


def _alternatives(runs: Sequence[RunInfo], beside: Sequence[int]) -> Iterator[_Way]:
    """Yields what has a row beside the members: a network, or the mean of several snapshots of one run."""
    names, place = member_names(runs), len(runs) - sum(beside)
    for num in beside:
        weights = np.zeros(len(runs))
        weights[place : place + num] = 1
        name = names[place] if num == 1 else f"{num} snapshots of {re.sub(r' snapshot [0-9]+', '', names[place])}"
        yield _Way(name, "alternative", weights, run=runs[place] if num == 1 else None)
        place += num


def _grid_models(num_members: int) -> list[int]:
    return sorted({*(num for num in _GRID_MODELS if num <= num_members), num_members})


def _grid_row(num_models: int, num_views: int, test: Answers, part: np.ndarray | None) -> Row:
    """Returns the mean of the members best on val: they come first."""
    best = np.arange(len(test.probabilities)) < num_models
    correct = combine(test, "mean", best).labels == test.targets
    of_part = part if num_views == _MANY else None
    return Row(f"best {num_models}", "ensemble", num_models, num_views, num_models * num_views, correct, part=of_part)


def _verdict(way: _Way, member: Member, test: Answers, part: np.ndarray | None) -> Verdict:
    labels = combine(test, way.rule, way.weights).labels
    probabilities = combine(test, "mean" if way.rule == "vote" else way.rule, way.weights).probabilities
    assert probabilities is not None
    indices = _by_path(member, "test")
    return Verdict(way.name, member.data.image_set, indices if part is None else indices[part], labels, probabilities)


def _row(
    way: _Way,
    num_views: int,
    test: Answers,
    val: Answers | None,
    calibration: bool,
    part: np.ndarray | None,
    cost: Cost,
) -> Row:
    on_test = combine(test, way.rule, way.weights)
    val_counts = fit_on = None
    if val is not None:
        on_val = combine(val, way.rule, way.weights)
        val_counts = (int((on_val.labels == val.targets).sum()), len(val.targets))
        if calibration and on_val.probabilities is not None:
            fit_on = (on_val.probabilities, val.targets)
    num_models = int(np.count_nonzero(way.weights))
    val_accuracy = way.run.metrics["best/val/acc"] if way.run else val_counts and val_counts[0] / val_counts[1]
    probabilities = on_test.probabilities
    return Row(
        name=way.name,
        kind=way.kind,
        num_models=num_models,
        num_views=num_views,
        forward_passes=num_models * num_views,
        correct=on_test.labels == test.targets,
        val_accuracy=val_accuracy,
        run_id=way.run.run_id if way.run else None,
        part=part,
        composition=way.composition,
        val_counts=val_counts,
        calibration=None if probabilities is None else calibration_of(probabilities, test.targets, fit_on),
        weights=tuple(map(float, way.weights)) if way.kind == "ensemble" else (),
        cost=cost,
    )
