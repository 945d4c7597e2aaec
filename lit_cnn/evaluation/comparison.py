"""Members alone and combined, with each number of views: the rows of the table."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lit_cnn.data.splits import Split, stratified_order
from lit_cnn.evaluation.calibration import calibration_of, find_temperature, fitting_places, logarithm
from lit_cnn.evaluation.combining import Rule, combine, select_greedily
from lit_cnn.evaluation.cost import Cost, Network, Timing, cost_of, time_networks
from lit_cnn.evaluation.fold_sets import FoldSet, common_images, networks_in
from lit_cnn.evaluation.members import member_names
from lit_cnn.evaluation.outputs import KeptOutputs, Reader, SplitOutputs, reader_of
from lit_cnn.evaluation.predict import LOADING, Loading, Member, split_by_path
from lit_cnn.evaluation.table import Row, Table
from lit_cnn.evaluation.view_logits import are_stored, view_logits
from lit_cnn.evaluation.ways import OnTest, Way, WayOnTest, on_test
from lit_cnn.reports.predictions import Predictions
from lit_cnn.tracking import Store
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
    part = _part(members[0], split_by_path(members[0], "test"), comparison.limit_144)
    networks = [Network(member.record.parameters, member.record.multiply_adds) for member in members]
    timing = _timing(members, comparison.views) if comparison.latency else None
    sizes = np.array([len(networks_in(member)) for member in members])
    num_members = len(members) - sum(baselines)
    rows: list[Row] = []
    grid: dict[tuple[int, int], Row] = {}
    predictions: Predictions | None = None
    for count in comparison.views:
        with ExitStack() as leaving:
            has_logits = comparison.combine == "logits"
            kept = KeptOutputs(val[count], comparison.folder, has_logits) if val else None
            on_val = leaving.enter_context(kept) if kept is not None else None
            ways = [*_ways(members, comparison, baselines, on_val), *_baselines(members, baselines)]
            fits = [_on_val(way, on_val, comparison.calibration) for way in ways]
        asked_for = ways[-1 - len(baselines)]
        best = [_best(num, len(members)) for num in _grid_models(num_members)]
        found = on_test(test[count], [*ways, *best], [fit.temperature for fit in fits], asked_for)
        of_part = part if count == _MANY else None
        for way, fit, result in zip(ways, fits, found.ways, strict=False):
            cost = cost_of(networks, np.flatnonzero(way.weights), count, timing)
            row = _row(way, count, _passes(way, sizes, count), result, fit, of_part, cost)
            rows.append(replace(row, weights=row.weights[:num_members]))
        for way, result in zip(best, found.ways[len(ways) :], strict=True):
            grid[way.num_models, count] = _grid_row(way, count, _passes(way, sizes, count), result, of_part)
        if count == comparison.views[0]:
            predictions = _predictions(asked_for, members[0], found, of_part)
    of_grid = [grid[num, count] for num in _grid_models(num_members) for count in comparison.views]
    table = Table.of(rows, rows[0], len(members[0].record.class_names), of_grid)
    return replace(table, predictions=predictions, load_model=lambda: members[0].model)


def runs_of(members: Sequence[Member]) -> list[RunInfo]:
    """Returns the runs of tracked networks."""
    return [member.run for member in members if member.run is not None]


def outputs_on(members: Sequence[Member], split: Split, comparison: Comparison) -> dict[int, SplitOutputs]:
    """Returns all members' outputs on a split, for each number of views; what is not stored is computed first."""
    images = common_images(members, split)
    part = _part(members[0], images[0], comparison.limit_144)
    readers: dict[int, list[Reader]] = {count: [] for count in comparison.views}
    targets: np.ndarray | None = None
    for member, indices, name in zip(members, images, member_names(runs_of(members)), strict=True):
        labels = member.data.image_set.labels[indices]
        assert targets is None or np.array_equal(targets, labels), "equal digests, yet other labels"
        targets = labels
        for count, reader in readers_of(member, split, indices, part, comparison, f"{name}, {split}").items():
            readers[count].append(reader)
    assert targets is not None
    num_classes = len(members[0].record.class_names)
    return {
        count: SplitOutputs(
            targets[part] if count == _MANY and part is not None else targets, found, count, num_classes
        )
        for count, found in readers.items()
    }


def readers_of(
    member: Member, split: Split, indices: np.ndarray, part: np.ndarray | None, comparison: Comparison, label: str
) -> dict[int, Reader]:
    """Returns what reads a member's outputs for each number of views, of all images or of the part for 144 crops."""
    if isinstance(member, FoldSet):
        fewer = [count for count in comparison.views if part is None or count != _MANY]
        found = _of_fold_set(member, split, indices, replace(comparison, views=fewer), label) if fewer else {}
        many = replace(comparison, views=[_MANY])
        return found if part is None else {**found, **_of_fold_set(member, split, indices[part], many, label)}
    how = (comparison.folder, comparison.loading, label)
    if part is None or are_stored(member, indices, _MANY, comparison.folder):
        logits = view_logits(member, indices, comparison.views, *how)
        readers = {count: reader_of(member, logits, count) for count in comparison.views}
        return readers if part is None else {**readers, _MANY: reader_of(member, logits, _MANY, part)}
    fewer = [count for count in comparison.views if count != _MANY]
    logits = view_logits(member, indices, fewer, *how)
    of_part = view_logits(member, indices[part], [_MANY], *how)
    return {**{count: reader_of(member, logits, count) for count in fewer}, _MANY: reader_of(member, of_part, _MANY)}


def predictions_of(
    store: Store, member: Member, name: str, split: Split, indices: np.ndarray, loading: Loading
) -> Predictions:
    """Returns what a tracked network predicts with one view; what is not stored is computed, and stored.

    Args:
        store: Where its run is.
        member: The network.
        name: What it is called.
        split: Of which the images are.
        indices: `(n,)` int, the images, in the order of their paths.
        loading: How images are read and go through the network.
    """
    comparison = Comparison([1], store.predictions_dir, loading=loading)
    reader = readers_of(member, split, indices, None, comparison, f"{name}, {split}")
    targets, num_classes = member.data.image_set.labels[indices], len(member.record.class_names)
    outputs = SplitOutputs(targets, [reader[1]], 1, num_classes)
    found = [(block.probabilities[0].argmax(axis=1), block.probabilities[0].max(axis=1)) for block in outputs.blocks()]
    labels, confidence = map(np.concatenate, zip(*found, strict=True))
    return Predictions(name, member.data.image_set, indices, labels, confidence)


def _of_fold_set(
    member: FoldSet, split: Split, indices: np.ndarray, comparison: Comparison, label: str
) -> dict[int, Reader]:
    return member.readers(split, indices, lambda network, own: readers_of(network, split, own, None, comparison, label))


def _part(member: Member, indices: np.ndarray, limit: int | None) -> np.ndarray | None:
    """Returns the places, ascending, of the images that are classified with 144 crops; None for all."""
    if limit is None or limit >= len(indices):
        return None
    # The seed is not the split's: members may differ in that where their data prescribe the split.
    chosen = stratified_order(member.data.image_set, indices, split_seed=0)[:limit]
    return np.flatnonzero(np.isin(indices, chosen))


def _ways(
    members: Sequence[Member], comparison: Comparison, baselines: Sequence[int], val: KeptOutputs | None
) -> list[Way]:
    """Returns the members, the mean of all, and the combination that is asked for."""
    runs = runs_of(members)
    num = len(runs) - sum(baselines)
    names = member_names(runs)[:num]
    ways = [Way(name, "member", np.eye(len(runs))[place], run=runs[place]) for place, name in enumerate(names)]

    def add(name: str, weights: np.ndarray, rule: Rule = "mean", composition: str = "") -> None:
        padded = np.concatenate([weights, np.zeros(len(runs) - num)])
        ways.append(Way(name, "ensemble", padded, rule, composition=composition))

    if num == 1:
        return ways  # together with itself it is what it is alone
    add(f"ensemble of {num}", np.ones(num))
    if comparison.combine == "greedy":
        assert val is not None
        counts = select_greedily(val.blocks, num)
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


def _baselines(members: Sequence[Member], baselines: Sequence[int]) -> Iterator[Way]:
    """Yields what the ensemble is compared with: a network, or the mean of several snapshots of one run."""
    runs = runs_of(members)
    names, place = member_names(runs), len(runs) - sum(baselines)
    for num in baselines:
        weights = np.zeros(len(runs))
        weights[place : place + num] = 1
        of_run = re.sub("(^| · )snapshot [0-9]+", "", names[place])
        name = names[place] if num == 1 else f"{num} snapshots{f' of {of_run}' if of_run else ''}"
        yield Way(name, "baseline", weights, run=runs[place] if num == 1 else None)
        place += num


def _grid_models(num_members: int) -> list[int]:
    return sorted({*(num for num in _GRID_MODELS if num <= num_members), num_members})


def _best(num_models: int, num_networks: int) -> Way:
    """Returns the mean of the members best on val: they come first."""
    return Way(f"best {num_models}", "ensemble", (np.arange(num_networks) < num_models).astype(float))


def _passes(way: Way, sizes: np.ndarray, num_views: int) -> int:
    """Returns how often a network is run for one image: a member may be several networks."""
    return int(sizes[np.flatnonzero(way.weights)].sum()) * num_views


def _timing(members: Sequence[Member], views: Sequence[int]) -> Timing:
    """Times all networks; those of one member run one after the other."""
    networks = [networks_in(member) for member in members]
    timing = time_networks([network.model for several in networks for network in several], views)
    starts = np.cumsum([0, *map(len, networks[:-1])])
    return replace(
        timing, seconds={size: np.add.reduceat(each, starts, axis=1) for size, each in timing.seconds.items()}
    )


def _grid_row(way: Way, num_views: int, passes: int, found: WayOnTest, part: np.ndarray | None) -> Row:
    return Row(way.name, "ensemble", way.num_models, num_views, passes, found.correct, part=part)


def _predictions(way: Way, member: Member, found: OnTest, part: np.ndarray | None) -> Predictions:
    indices = split_by_path(member, "test")
    indices = indices if part is None else indices[part]
    return Predictions(way.name, member.data.image_set, indices, found.labels, found.confidence)


class _Fit(NamedTuple):
    """What a way comes to on val, where that was asked for: images it gets right, and of how many; a temperature."""

    counts: tuple[int, int] | None = None
    temperature: tuple[float, str] | None = None


def _on_val(way: Way, val: KeptOutputs | None, calibration: bool) -> _Fit:
    if val is None:
        return _Fit()
    num_correct, start, sample = 0, 0, []
    places = fitting_places(val.targets, val.num_classes) if calibration and way.rule != "vote" else None
    for block in val.blocks():
        found = combine(block, way.rule, way.weights)
        num_correct += int((found.labels == block.targets).sum())
        if places is not None and found.probabilities is not None:
            inside = places[(places >= start) & (places < start + len(block.targets))] - start
            sample.append(logarithm(found.probabilities[inside]))
        start += len(block.targets)
    temperature = None if places is None else find_temperature(np.concatenate(sample), val.targets[places])
    return _Fit((num_correct, len(val.targets)), temperature)


def _row(
    way: Way, num_views: int, passes: int, found: WayOnTest, fit: _Fit, part: np.ndarray | None, cost: Cost
) -> Row:
    val_accuracy = way.run.metrics["best/val/acc"] if way.run else fit.counts and fit.counts[0] / fit.counts[1]
    return Row(
        name=way.name,
        kind=way.kind,
        num_models=way.num_models,
        num_views=num_views,
        forward_passes=passes,
        correct=found.correct,
        val_accuracy=val_accuracy,
        run_id=way.run.run_id if way.run else None,
        part=part,
        composition=way.composition,
        val_counts=fit.counts,
        calibration=None if found.scores is None else calibration_of(found.scores, found.after, fit.temperature),
        weights=tuple(map(float, way.weights)) if way.kind == "ensemble" else (),
        cost=cost,
    )
