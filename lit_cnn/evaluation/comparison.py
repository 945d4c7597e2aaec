"""Members alone and combined, with each number of views: the rows of the table."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.data.splits import Split, stratified_order
from lit_cnn.evaluation.calibration import calibration_of
from lit_cnn.evaluation.combining import Outputs, Rule, combine, select_greedily
from lit_cnn.evaluation.cost import Cost, Network, cost_of, time_networks
from lit_cnn.evaluation.members import member_names
from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.predict import LOADING, Loading, Member, are_stored, predict_views, split_by_path
from lit_cnn.evaluation.table import Row, Table
from lit_cnn.reports.predictions import Predictions
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
        combine: One of `COMBINATIONS`; the plain mean is shown too.
        weights: One for each member, in their order, instead of equal ones.
        calibration: Whether temperatures are fitted, which needs the logits on val.
        latency: Whether forward passes are timed.
        limit_144: With 144 crops use at most that many images of test, and of val, stratified.
        loading: How images are read and go through the networks.
    """

    views: Sequence[int]
    folder: Path
    combine: str = "mean"
    weights: Sequence[float] | None = None
    calibration: bool = False
    latency: bool = False
    limit_144: int | None = None
    loading: Loading = LOADING

    @property
    def needs_val(self) -> bool:
        """Whether predictions on val are needed, and not only those on test."""
        return self.calibration or self.combine == "greedy"


@dataclass(frozen=True, eq=False)
class _Way:
    """One way to classify: some of the networks, with weights `(M,)`, under a rule."""

    name: str
    kind: Literal["member", "ensemble", "baseline"]
    weights: np.ndarray
    rule: Rule = "mean"
    run: RunInfo | None = None
    composition: str = ""


def evaluate(members: Sequence[Member], comparison: Comparison, baselines: Sequence[int] = ()) -> Table:
    """Evaluates networks, alone and combined, with each number of views.

    Args:
        members: The members' networks, best on val first; then those of the baselines. All are tracked runs'.
        comparison: What and how.
        baselines: How many networks each baseline has: 1, or several that it is the mean of.

    Returns:
        The table, with what the combination that was asked for predicts for each test image with the fewest crops.
    """
    test = outputs_on(members, "test", comparison)
    val = outputs_on(members, "val", comparison) if comparison.needs_val else {}
    part = _part(members[0], "test", comparison.limit_144)
    networks = [Network(member.record.parameters, member.record.multiply_adds) for member in members]
    timing = time_networks([member.model for member in members], comparison.views) if comparison.latency else None
    num_members = len(members) - sum(baselines)
    rows: list[Row] = []
    for count in comparison.views:
        for way in [*_ways(members, comparison, baselines, val.get(count)), *_baselines(members, baselines)]:
            of_part = part if count == _MANY else None
            cost = cost_of(networks, np.flatnonzero(way.weights), count, timing)
            row = _row(way, count, test[count], val.get(count), comparison.calibration, of_part, cost)
            rows.append(replace(row, weights=row.weights[:num_members]))
    grid = [_grid_row(num, count, test[count], part) for num in _grid_models(num_members) for count in comparison.views]
    fewest = comparison.views[0]
    asked_for = _ways(members, comparison, baselines, val.get(fewest))[-1]
    predictions = _predictions(asked_for, members[0], test[fewest], part if fewest == _MANY else None)
    table = Table.of(rows, rows[0], len(members[0].record.class_names), grid)
    return replace(table, predictions=predictions, load_model=lambda: members[0].model)


def outputs_of(member: Member, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns probabilities and logits of a member, `(N, K)` float64: the means over its views.

    Args:
        member: The network of a tracked run.
        logits: `(V, N, K)`, its logits.

    Raises:
        UsageError: If a logit is not finite; the message names the run.
    """
    try:
        return average_probabilities(logits), logits.mean(axis=0, dtype=np.float64)
    except UsageError as error:
        assert member.run is not None
        raise UsageError("runs", member.run.run_id, f"{member.run.name}: {error.reason}", error.remedy) from error


def runs_of(members: Sequence[Member]) -> list[RunInfo]:
    """Returns the runs of tracked networks."""
    return [member.run for member in members if member.run is not None]


def outputs_on(members: Sequence[Member], split: Split, comparison: Comparison) -> dict[int, Outputs]:
    """Returns all members' outputs on a split, for each number of views."""
    part = _part(members[0], split, comparison.limit_144)
    found: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {count: [] for count in comparison.views}
    targets: np.ndarray | None = None
    for member, name in zip(members, member_names(runs_of(members)), strict=True):
        indices = split_by_path(member, split)
        labels = member.data.image_set.labels[indices]
        assert targets is None or np.array_equal(targets, labels), "equal digests, yet other labels"
        targets = labels
        for count, logits in _logits(member, indices, part, comparison, f"{name}, {split}").items():
            found[count].append(outputs_of(member, logits))
    assert targets is not None
    return {
        count: Outputs(
            targets[part] if count == _MANY and part is not None else targets, *map(np.stack, zip(*of_all, strict=True))
        )
        for count, of_all in found.items()
    }


def _logits(
    member: Member, indices: np.ndarray, part: np.ndarray | None, comparison: Comparison, label: str
) -> dict[int, np.ndarray]:
    how = (comparison.folder, comparison.loading, label)
    if part is None or are_stored(member, indices, _MANY, comparison.folder):
        logits = predict_views(member, indices, comparison.views, *how)
        return logits if part is None else {**logits, _MANY: logits[_MANY][:, part]}
    fewer = [count for count in comparison.views if count != _MANY]
    return {
        **predict_views(member, indices, fewer, *how),
        **predict_views(member, indices[part], [_MANY], *how),
    }


def _part(member: Member, split: Split, limit: int | None) -> np.ndarray | None:
    """Returns the places, ascending, of the images that are classified with 144 crops; None for all."""
    indices = split_by_path(member, split)
    if limit is None or limit >= len(indices):
        return None
    # The seed is not the split's: members may differ in that where their data prescribe the split.
    chosen = stratified_order(member.data.image_set, indices, split_seed=0)[:limit]
    return np.flatnonzero(np.isin(indices, chosen))


def _ways(
    members: Sequence[Member], comparison: Comparison, baselines: Sequence[int], val: Outputs | None
) -> list[_Way]:
    """Returns the members, the mean of all, and the combination that is asked for."""
    runs = runs_of(members)
    num = len(runs) - sum(baselines)
    names = member_names(runs)[:num]
    ways = [_Way(name, "member", np.eye(len(runs))[place], run=runs[place]) for place, name in enumerate(names)]

    def add(name: str, weights: np.ndarray, rule: Rule = "mean", composition: str = "") -> None:
        padded = np.concatenate([weights, np.zeros(len(runs) - num)])
        ways.append(_Way(name, "ensemble", padded, rule, composition=composition))

    if num == 1:
        return ways  # together with itself it is what it is alone
    add(f"ensemble of {num}", np.ones(num))
    if comparison.combine == "greedy":
        assert val is not None
        counts = select_greedily(val.probabilities[:num], val.targets)
        num_selected = np.count_nonzero(counts)
        if 1 < num_selected < num:
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


def _baselines(members: Sequence[Member], baselines: Sequence[int]) -> Iterator[_Way]:
    """Yields what the ensemble is compared with: a network, or the mean of several snapshots of one run."""
    runs = runs_of(members)
    names, place = member_names(runs), len(runs) - sum(baselines)
    for num in baselines:
        weights = np.zeros(len(runs))
        weights[place : place + num] = 1
        of_run = re.sub("(^| · )snapshot [0-9]+", "", names[place])
        name = names[place] if num == 1 else f"{num} snapshots{f' of {of_run}' if of_run else ''}"
        yield _Way(name, "baseline", weights, run=runs[place] if num == 1 else None)
        place += num


def _grid_models(num_members: int) -> list[int]:
    return sorted({*(num for num in _GRID_MODELS if num <= num_members), num_members})


def _grid_row(num_models: int, num_views: int, test: Outputs, part: np.ndarray | None) -> Row:
    """Returns the mean of the members best on val: they come first."""
    best = np.arange(len(test.probabilities)) < num_models
    correct = combine(test, "mean", best).labels == test.targets
    of_part = part if num_views == _MANY else None
    return Row(f"best {num_models}", "ensemble", num_models, num_views, num_models * num_views, correct, part=of_part)


def _predictions(way: _Way, member: Member, test: Outputs, part: np.ndarray | None) -> Predictions:
    labels = combine(test, way.rule, way.weights).labels
    probabilities = combine(test, "mean" if way.rule == "vote" else way.rule, way.weights).probabilities
    assert probabilities is not None
    indices = split_by_path(member, "test")
    indices = indices if part is None else indices[part]
    return Predictions(way.name, member.data.image_set, indices, labels, probabilities)


def _row(
    way: _Way,
    num_views: int,
    test: Outputs,
    val: Outputs | None,
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
