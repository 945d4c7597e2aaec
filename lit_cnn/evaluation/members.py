"""The networks that are compared: tracked runs by their best checkpoint, soups, snapshots of runs with cycles."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.labels import SEPARATOR, labels_of, shared_label
from lit_cnn.core.words import counted
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run, id_of
from lit_cnn.training.weights import checkpoint_of_run, checkpoint_path

KINDS = ("fit", "soup")
"""Kinds of runs that have a checkpoint."""

_FOLDS = "folds"

MUST_AGREE = {
    "class_names": "class names",
    "test_split_digest": "test images",
    # Val chose each member's checkpoint, and the member that all others are compared with.
    "val_split_digest": "validation images",
}
"""Tags in which the networks of a comparison must agree, and what they stand for."""


def find_networks(store: Store, names: Sequence[Run | str]) -> list[RunInfo]:
    """Returns the networks of these names, in this order.

    Args:
        store: Where to look.
        names: A run or `RUN_ID` for the best checkpoint of a run, `RUN_ID/2` for its second snapshot,
            `RUN_ID/snapshots` for all of them, one after the other. Ids may be cut as in `queries.find_runs`.

    Returns:
        One for each network. A snapshot's has an id such as `RUN_ID/2`, and in place of the run's metrics its own
        `best/val/acc`. A run of folds is one too: in place of its metrics, means over the folds, it has what all its
        networks come to, out of fold as `best/val/acc` and together as `test/acc`.

    Raises:
        UsageError: If a run or a snapshot is not there.
    """
    return [network for name in names for network in _networks_of(store, id_of(name))]


def is_fold_set(run: RunInfo) -> bool:
    """Whether a run is one of folds, which has several networks."""
    return run.tags.get("kind") == _FOLDS


def networks_of(store: Store, run: RunInfo) -> list[RunInfo]:
    """Returns the runs of the networks that a run is: several for one of folds, else itself.

    Raises:
        UsageError: If a run of folds has not come to its end.
    """
    if not is_fold_set(run):
        return [run]
    if "members" not in run.tags:
        raise UsageError("runs", run.run_id, f"{run.name} has not come to its end", "train it on with `resume=auto`")
    return queries.find_runs(store, run.tags["members"].split())


def is_several(name: Run | str) -> bool:
    """Whether a name of `find_networks` stands for several networks."""
    return id_of(name).endswith("/snapshots")


def checkpoint_of(store: Store, network: RunInfo) -> Path:
    """Returns a local path of the checkpoint of a network that `find_networks` found; see `checkpoint_of_run`."""
    return checkpoint_of_run(store, network.run_id)


def checkpoint_sha256(network: RunInfo) -> str | None:
    """Returns the SHA-256 of that checkpoint without fetching it; None where nothing but the file can tell."""
    return queries.artifact_sha256(network, checkpoint_path(network.run_id))


def find_members(
    store: Store,
    runs: Sequence[Run | str] | None = None,
    experiment: str | None = None,
    filter: str = "",
    top_k: int | None = None,
) -> list[RunInfo]:
    """Returns the members' runs, best on val first.

    Args:
        store: Where to look.
        runs: Names of `find_networks`; without them all runs of the experiment that match.
        experiment: The experiment.
        filter: Which of its finished training runs, in MLflow's search syntax. Trials, such as those of
            `lit-cnn advise`, are among them only if it speaks of `tags.trial`.
        top_k: So many of them at most.

    Raises:
        UsageError: If an id is not there, no run matches, there are fewer than `top_k`, or a run that was named has no
            val accuracy. Others without one are left out, and a line on stderr says so.
    """
    if runs:
        found = find_networks(store, runs)
    else:
        assert experiment is not None
        found = _finished_runs(store, experiment, filter)
    for run in found:
        if run.tags.get("kind") not in (*KINDS, _FOLDS):
            raise UsageError("runs", run.run_id, f"{run.name} is no training run", "give runs of lit-cnn fit")
        networks_of(store, run)
        if "best/val/acc" not in run.metrics:
            reason = f"{run.name} has no best/val/acc: it ended before its first validation"
            raise UsageError("runs", run.run_id, reason, "leave it out, or train it longer")
    refuse_twice(found)
    if top_k is not None and not runs and len(set(map(is_fold_set, found))) > 1:
        folds = sum(map(is_fold_set, found))
        remedy = "`runs` names them, `filter` \"tags.kind = 'folds'\" takes them alone"
        line = f"left out: {counted(folds, 'run')} of folds, validated on other images; {remedy}"
        print(as_printed(line), file=sys.stderr)
        found = [run for run in found if not is_fold_set(run)]
    if top_k is not None and len(found) < top_k:
        raise UsageError("top_k", top_k, f"only {len(found)} runs match", f"give at most {len(found)}")
    return best_first(found)[:top_k]


def best_first(runs: Sequence[RunInfo]) -> list[RunInfo]:
    """Returns runs in the order of their accuracy on val; of equal ones the older comes first, whatever the store."""
    return sorted(runs, key=lambda run: (-run.metrics["best/val/acc"], run.tags.get("seed", ""), run.run_id))


def refuse_twice(runs: Sequence[RunInfo]) -> None:
    """Refuses a network that is named twice.

    Raises:
        UsageError: If so.
    """
    ids = [run.run_id for run in runs]
    if len(set(ids)) < len(ids):
        raise UsageError("runs", ids, "a run is named twice", "name each member once")


def refuse_unlike(runs: Sequence[RunInfo], option: str = "runs") -> None:
    """Refuses members that were not trained for the same classes, in the same order, on the same split.

    Args:
        runs: At least one.
        option: What chooses them.

    Raises:
        UsageError: Naming the two runs and what differs.
    """
    for place, run in enumerate(runs):
        for tag, what in MUST_AGREE.items():
            # The images of all folds and those of a val are others: see `fold_sets.common_images`.
            of_folds = is_fold_set(run) if tag == "val_split_digest" else None
            first = next(each for each in runs[: place + 1] if of_folds in (None, is_fold_set(each)))
            if run.tags.get(tag) != first.tags.get(tag):
                raise UsageError(
                    option,
                    None,
                    f"{first.run_id} ({first.name}) and {run.run_id} ({run.name}) differ in their {what}",
                    "take only runs of the same classes, in the same order, and the same split",
                )


def member_names(runs: Sequence[RunInfo]) -> list[str]:
    """Returns what tells networks apart and nothing else: `head_only · seed 2`, `snapshot 2`, `soup of 3`.

    Networks that differ in nothing have the first digits of their ids too.
    """
    trained = [run for run in runs if not _is_soup(run)]
    labels = iter(labels_of([recorded_params(run) for run in trained]))
    of_run = [f"soup of {len(run.tags['members'].split())}" if _is_soup(run) else next(labels) for run in runs]
    own = [f"snapshot {number}" if (number := run.run_id.partition("/")[2]) else "" for run in runs]
    if len(set(of_run)) == 1 and len(set(own)) > 1:  # snapshots of one run
        names = [snapshot or label for snapshot, label in zip(own, of_run, strict=True)]
    else:
        names = [SEPARATOR.join(filter(None, pair)) for pair in zip(of_run, own, strict=True)]
    return [
        name if names.count(name) == 1 else f"{name} {run.run_id[:8]}" for name, run in zip(names, runs, strict=True)
    ]


def subject_of(runs: Sequence[RunInfo]) -> str:
    """Returns what networks have in common: data set, network, regime, image size."""
    params = [recorded_params(run) for run in runs if not _is_soup(run)]
    return SEPARATOR.join(filter(None, [runs[0].tags["data"], shared_label(params) if params else ""]))


def recorded_params(run: RunInfo) -> dict[str, str]:
    """Returns a run's params for its label, with what `auto` or no regime have become."""
    known = {"model.arch": "arch", "model.transfer": "transfer"}
    return {**run.params, **{param: run.tags[tag] for param, tag in known.items() if tag in run.tags}}


def _finished_runs(store: Store, experiment: str, filter: str) -> list[RunInfo]:
    ours = "tags.kind LIKE 'f%' and attributes.status = 'FINISHED'"  # MLflow has no other "or" for tags
    queries.experiment_id(store, experiment)
    if filter.strip():
        found = queries.search_runs(store, experiment, f"{ours} and {filter}")
    else:
        try:
            found = queries.search_runs(store, experiment, ours)
        except UsageError as error:
            raise UsageError("experiment", experiment, "has no finished run of lit-cnn fit", "make one") from error
    found = [_of_all_folds(run) if is_fold_set(run) else run for run in found if run.tags["kind"] in ("fit", _FOLDS)]
    results = [run for run in found if "trial" not in run.tags or "trial" in filter]
    if not results:
        remedy = "name them in `runs`, or give `filter` \"tags.trial = 'advice'\""
        raise UsageError("experiment", experiment, "has no finished runs but trials", remedy)
    validated = [run for run in results if "best/val/acc" in run.metrics]
    for run in results:
        if run not in validated:
            print(f"left out: {run.name} ({run.run_id}) ended before its first validation", file=sys.stderr)
    if not validated:
        raise UsageError("experiment", experiment, "has no run with a validation", "train longer")
    return validated


def _of_all_folds(run: RunInfo) -> RunInfo:
    """Returns a run of folds with what its networks come to, as a comparison takes it from a run of one."""
    better = {"best/val/acc": "oof/acc", "test/acc": "test/acc_of_mean"}
    metrics = {name: value for name, value in run.metrics.items() if name not in better}
    metrics |= {name: run.metrics[other] for name, other in better.items() if other in run.metrics}
    parameters = int(run.tags["parameters"]) * int(run.metrics.get("folds", 1))
    return replace(run, metrics=metrics, tags={**run.tags, "parameters": str(parameters)})


def _is_soup(run: RunInfo) -> bool:
    return run.tags.get("kind") == "soup"


def _networks_of(store: Store, name: str) -> list[RunInfo]:
    run_id, slash, which = name.partition("/")
    (run,) = queries.find_runs(store, [run_id])
    if not slash:
        return [_of_all_folds(run) if is_fold_set(run) else run]
    logged = (re.fullmatch(r"snapshot_(\d+)/val/acc", metric) for metric in run.metrics)
    numbers = sorted(int(found[1]) for found in logged if found)
    wanted = numbers if which == "snapshots" else [number for number in numbers if str(number) == which]
    if not wanted:
        there = f"it has {', '.join(map(str, numbers))}" if numbers else "only training with a cyclic schedule has"
        raise UsageError("runs", name, f"{run.name} has no such snapshot", there)
    return [
        replace(
            run,
            run_id=f"{run.run_id}/{number}",
            name=f"{run.name} snapshot {number}",
            metrics={"best/val/acc": run.metrics[f"snapshot_{number}/val/acc"]},
        )
        for number in wanted
    ]
