"""The runs of an experiment as a leaderboard, or two runs image by image."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.labels import SEED, labels_of
from lit_cnn.core.run_params import decides
from lit_cnn.evaluation.comparison import predictions_of
from lit_cnn.evaluation.fold_sets import FoldSet, common_images, load, networks_in, with_shared_val
from lit_cnn.evaluation.leaderboard import Group, Leaderboard, build_leaderboard
from lit_cnn.evaluation.members import (
    find_members,
    find_networks,
    is_fold_set,
    member_names,
    recorded_params,
    refuse_unlike,
    subject_of,
)
from lit_cnn.evaluation.pair import Pair, build_pair
from lit_cnn.evaluation.predict import LOADING, Loading, Member, split_by_path
from lit_cnn.evaluation.recording import record_comparison
from lit_cnn.evaluation.view_logits import are_stored
from lit_cnn.tracking import Store, check_writable, queries, resolve_store
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, read_out_of_fold

Split = Literal["val", "test"]

_METRIC: dict[str, str] = {"val": "best/val/acc", "test": "test/acc"}


def compare(
    runs: Sequence[Run | str] | None = None,
    *,
    experiment: str | None = None,
    filter: str = "",
    split: Split = "test",
    loading: Loading = LOADING,
    output: Path | str | None = None,
    tracking_uri: str | None = None,
) -> Pair | Leaderboard:
    """Compares two runs image by image, or an experiment's finished training runs by configuration.

    Of two runs, logits that are not stored are computed, with one view. A leaderboard computes none and uses those
    that are stored; where a configuration has none, its accuracies over the seeds are compared.

    Args:
        runs: Two runs, or their ids; or give `experiment`.
        experiment: Name of the experiment.
        filter: Which of its runs, in MLflow's search syntax.
        split: On which images.
        loading: How images are read and go through the networks.
        output: Folder of a report, which MLflow then has too, as a run; see also `Pair.report`.
        tracking_uri: The MLflow store; see `resolve_store`.

    Raises:
        UsageError: If a run is not there, nothing matches, the runs have no common ground, or the folder cannot be
            written.

    Example:
        >>> pair = lit_cnn.compare([run, other])
        >>> pair.answer()  # doctest: +ELLIPSIS
        '...359 test images...'
        >>> board = lit_cnn.compare(experiment="digits")
    """
    if bool(runs) == bool(experiment):
        raise UsageError(reason="`runs`, `experiment`: give one of the two: `runs=ID ID` or `experiment=NAME`")
    store = resolve_store(tracking_uri)
    if experiment:
        return _leaderboard(store, experiment, filter, split, loading, output)
    assert runs is not None
    if filter:
        raise UsageError("filter", filter, "is for `experiment`", "leave it out")
    if len(runs) != 2:
        raise UsageError("runs", None, f"give two runs, not {len(runs)}")
    return _pair(store, runs, split, loading, output)


def _leaderboard(
    store: Store, experiment: str, filter: str, split: Split, loading: Loading, output: Path | str | None
) -> Leaderboard:
    runs = find_members(store, None, experiment, filter)
    metric = _METRIC[split]
    notes = [
        f"Left out: {run.name} ({run.run_id}) has no {metric}; it ended without a test."
        for run in runs
        if metric not in run.metrics
    ]
    runs = [run for run in runs if metric in run.metrics]
    if not runs:
        raise UsageError("split", split, f"no run of experiment {experiment!r} has {metric}", "use `split=val`")
    refuse_unlike(runs, "filter")
    if split == "val" and len({is_fold_set(run) for run in runs}) > 1:
        notes += [
            f"Left out: {run.name} ({run.run_id}), validated on other images." for run in runs if is_fold_set(run)
        ]
        runs = [run for run in runs if not is_fold_set(run)]
    try:
        runs = with_shared_val(store, runs, loading.root)
    except UsageError as error:
        notes.append(f"Runs of folds and runs without are validated on other images: {error.reason}.")
    without_logits: list[str] = []
    groups = [
        _group(store, name, of_group, split, loading, notes, without_logits)
        for name, of_group in _by_configuration(runs).items()
    ]
    if without_logits:
        notes.append(
            f"{len(without_logits)} run{'s have' if len(without_logits) > 1 else ' has'} no stored logits on {split}, "
            f"which an ensemble or a comparison of two runs stores: {', '.join(without_logits)}."
        )
    board = replace(build_leaderboard(groups, experiment, split, notes), subject=subject_of(runs))
    if output is None:
        return board
    files, name = board.report_files(output), f"compare_{experiment}"
    note = board.to_markdown()
    return replace(board, run=record_comparison(store, runs, name=name, kind="compare", note=note, files=files))


def _pair(store: Store, named: Sequence[Run | str], split: Split, loading: Loading, output: Path | str | None) -> Pair:
    best_first = {run.run_id: run for run in find_members(store, named)}
    runs = [best_first[run.run_id] for run in find_networks(store, named)]
    refuse_unlike(runs)
    check_writable(store)
    first, second = (load(store, run, [split], loading.root) for run in runs)
    images = common_images((first, second), split)
    one, other = (
        predictions_of(store, member, name, split, own, loading)
        for member, name, own in zip((first, second), member_names(runs), images, strict=True)
    )
    pair = replace(
        build_pair(one, other, split),
        load_models=(lambda: first.model, lambda: second.model),
        subject=subject_of(runs),
    )
    if output is None:
        return pair
    files, name = pair.report_files(output), f"compare_{runs[0].name}"
    note = "\n".join([f"**{pair.answer()}**", "", *(f"- {sentence}" for sentence in pair.sentences())])
    return replace(pair, run=record_comparison(store, runs, name=name, kind="compare", note=note, files=files))


def _by_configuration(runs: Sequence[RunInfo]) -> dict[str, list[RunInfo]]:
    """Groups runs of one configuration, which differ in the seed alone, under names that tell the groups apart.

    Params that decide no weights are ignored, and the place of the data: its digest counts. Of
    several runs with one seed the newest is kept.
    """
    grouped: dict[str, dict[str, RunInfo]] = {}
    for run in runs:
        own = {name: value for name, value in run.params.items() if decides(name) and name != SEED}
        key = json.dumps([run.name, run.tags.get("data_digest"), own], sort_keys=True)
        seed = run.tags["seed"]
        kept = grouped.setdefault(key, {}).get(seed)
        if kept is None or run.start_time > kept.start_time:
            grouped[key][seed] = run
    firsts = [of_seeds[min(of_seeds)] for of_seeds in grouped.values()]
    # Without the seed: each group has several.
    labels = labels_of([{**recorded_params(run), SEED: None} for run in firsts])
    names = [
        label if labels.count(label) == 1 else f"{label} {run.run_id[:8]}"
        for label, run in zip(labels, firsts, strict=True)
    ]
    return {
        name: [of_seeds[seed] for seed in sorted(of_seeds)]
        for name, of_seeds in zip(names, grouped.values(), strict=True)
    }


def _group(
    store: Store,
    name: str,
    runs: Sequence[RunInfo],
    split: Split,
    loading: Loading,
    notes: list[str],
    without_logits: list[str],
) -> Group:
    """Returns a configuration's runs; adds to `notes` what cannot be read, to `without_logits` runs that have none."""
    correct, multiply_adds = [], None
    for run in runs:
        try:
            member = load(store, run, [split], loading.root)
            found = _correct(store, member, run, name, split, loading)
        except UsageError as error:
            notes.append(f"{run.name} ({run.run_id}) cannot be compared image by image: {error.reason}.")
            continue
        multiply_adds = member.record.multiply_adds
        if found is not None:
            correct.append(found)
        else:
            without_logits.append(run.run_id)
    return Group(
        name,
        tuple(run.run_id for run in runs),
        np.array([run.metrics[_METRIC[split]] for run in runs]),
        float(np.mean([run.metrics["best/val/acc"] for run in runs])),
        np.stack(correct) if len(correct) == len(runs) else None,
        int(runs[0].tags["parameters"]),
        multiply_adds,
    )


def _correct(
    store: Store, member: Member, run: RunInfo, name: str, split: Split, loading: Loading
) -> np.ndarray | None:
    """Returns `(N,)` bool, which images a run gets right by what is stored; None if that is not enough."""
    if split == "val" and isinstance(member, FoldSet):
        found = read_out_of_fold(queries.download_artifact(store, run, f"{FOLDER}/{LOGITS}"))
        return None if found is None else found.correct
    indices = split_by_path(member, split)
    for network in networks_in(member):
        if not are_stored(network, indices, 1, store.predictions_dir):
            return None
    return predictions_of(store, member, name, split, indices, loading).correct
