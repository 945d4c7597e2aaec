"""The networks that are compared: tracked runs by their best checkpoint, soups, snapshots of runs with cycles."""

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run, id_of
from lit_cnn.training.weights import checkpoint_of_run, checkpoint_path

KINDS = ("fit", "soup")
"""Kinds of runs that have a checkpoint."""

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
        `best/val/acc`.

    Raises:
        UsageError: If a run or a snapshot is not there.
    """
    return [network for name in names for network in _networks_of(store, id_of(name))]


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
        if run.tags.get("kind") not in KINDS:
            raise UsageError("runs", run.run_id, f"{run.name} is no training run", "give runs of lit-cnn fit")
        if "best/val/acc" not in run.metrics:
            reason = f"{run.name} has no best/val/acc: it ended before its first validation"
            raise UsageError("runs", run.run_id, reason, "leave it out, or train it longer")
    refuse_twice(found)
    # Ties go to the older run, so that the order does not depend on the store.
    found.sort(key=lambda run: (-run.metrics["best/val/acc"], run.tags.get("seed", ""), run.run_id))
    if top_k is not None and len(found) < top_k:
        raise UsageError("top_k", top_k, f"only {len(found)} runs match", f"give at most {len(found)}")
    return found[:top_k]


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
    first = runs[0]
    for run in runs[1:]:
        for tag, what in MUST_AGREE.items():
            if run.tags.get(tag) != first.tags.get(tag):
                raise UsageError(
                    option,
                    None,
                    f"{first.run_id} ({first.name}) and {run.run_id} ({run.name}) differ in their {what}",
                    "take only runs of the same classes, in the same order, and the same split",
                )


def member_names(runs: Sequence[RunInfo]) -> list[str]:
    """Returns the shortest names that tell networks apart: architecture, what it is and seed; else by run name or id.

    What it is: the run's recipe, `ema`, `swa`, `student` of an ensemble, `soup`, `snapshot 2`; or nothing.
    """
    seeds = [run.tags.get("seed", "?") for run in runs]
    short = [
        " ".join([run.tags["arch"].rpartition("/")[2], *_what_it_is(run), f"seed {seed}"])
        for run, seed in zip(runs, seeds, strict=True)
    ]
    full = [f"{run.name} seed {seed}" for run, seed in zip(runs, seeds, strict=True)]
    for names in (short, full):
        if len(set(names)) == len(runs):
            return names
    return [f"{name} {run.run_id[:8]}" for name, run in zip(short, runs, strict=True)]


def _finished_runs(store: Store, experiment: str, filter: str) -> list[RunInfo]:
    ours = "tags.kind = 'fit' and attributes.status = 'FINISHED'"
    queries.experiment_id(store, experiment)
    if filter.strip():
        found = queries.search_runs(store, experiment, f"{ours} and {filter}")
    else:
        try:
            found = queries.search_runs(store, experiment, ours)
        except UsageError as error:
            raise UsageError("experiment", experiment, "has no finished run of lit-cnn fit", "make one") from error
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


def _what_it_is(run: RunInfo) -> list[str]:
    if run.tags.get("kind") == "soup":
        return ["soup"]
    words = {"ema_decay": "ema", "swa_start": "swa", "model.teachers": "student"}
    found = [word for param, word in words.items() if param in run.params]
    recipe = run.params.get("recipe")
    found = [recipe, *found] if recipe and recipe not in found else found
    number = run.run_id.partition("/")[2]
    return [*found, f"snapshot {number}"] if number else found


def _networks_of(store: Store, name: str) -> list[RunInfo]:
    run_id, slash, which = name.partition("/")
    (run,) = queries.find_runs(store, [run_id])
    if not slash:
        return [run]
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
