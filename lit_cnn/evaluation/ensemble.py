"""Tracked runs, alone and combined, with one and with many crops, in one table."""

import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.comparison import COMBINATIONS, Comparison, evaluate
from lit_cnn.evaluation.fold_sets import load, with_shared_val
from lit_cnn.evaluation.members import (
    MUST_AGREE,
    best_first,
    find_members,
    find_networks,
    is_several,
    refuse_unlike,
    subject_of,
)
from lit_cnn.evaluation.multi_crop import VIEWS
from lit_cnn.evaluation.predict import LOADING, Loading
from lit_cnn.evaluation.recording import record_comparison
from lit_cnn.evaluation.table import Table
from lit_cnn.tracking import Store, check_writable, resolve_store
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run


def ensemble(
    runs: Sequence[Run | str] | None = None,
    *,
    experiment: str | None = None,
    filter: str = "",
    top_k: int | None = None,
    baselines: Sequence[Run | str] = (),
    views: Sequence[int] = (1, 10),
    limit_144: int | None = None,
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    calibration: bool = False,
    latency: bool = False,
    loading: Loading = LOADING,
    output: Path | str | None = None,
    tracking_uri: str | None = None,
) -> Table:
    """Evaluates runs' best checkpoints on the test images, alone and combined; the comparison is a run in MLflow.

    Every member sees every view once, with its own preprocessing; probabilities are averaged over views. Logits are
    stored, so that what was computed once is not computed again.

    Args:
        runs: The members: runs, their ids, or names of `find_networks`; or give `experiment`.
        experiment: Take the members from this experiment.
        filter: Which of its runs, in MLflow's search syntax.
        top_k: That many of them, best on val first.
        baselines: Networks that are compared with the ensemble, and not members of it; `RUN_ID/snapshots` is one, the
            mean of all snapshots.
        views: Numbers of crops per image.
        limit_144: With 144 crops use at most that many images, stratified; default: all.
        combine: How members are combined, one of `COMBINATIONS`; the mean of all is in the table too.
        weights: One for each of `runs`, in their order; default: equal ones.
        calibration: Fit a temperature for each row on val.
        latency: Time the networks' forward passes.
        loading: How images are read and go through the networks.
        output: Folder of a report with activation maps, which MLflow then has too; see also `Table.report`.
        tracking_uri: The MLflow store; see `resolve_store`.

    Raises:
        UsageError: If the members cannot be found or may not be averaged, or an option cannot be used.

    Example:
        >>> table = lit_cnn.ensemble([run, other], views=[1, 2])
        >>> table.to_dataframe()["name"].tolist()[:3]
        ['seed 1', 'seed 0', 'ensemble of 2']
        >>> table.report("report").name
        'report.html'
    """
    if bool(runs) == bool(experiment):
        raise UsageError(
            reason="`runs`, `experiment`: give the members by one of the two: `runs=ID ID …` or `experiment=NAME`"
        )
    if top_k is not None and top_k < 1:
        raise UsageError("top_k", top_k, "give a whole number of at least 1")
    _check_views(views, limit_144)
    _check_combination(combine, weights, runs, top_k)
    store = resolve_store(tracking_uri)
    check_writable(store)
    found = find_members(store, runs, experiment, filter, top_k)
    others = [find_members(store, [name]) for name in baselines]
    _check_baselines(found, others)
    networks = [*found, *(network for several in others for network in several)]
    refuse_unlike(networks)
    networks = with_shared_val(store, networks, loading.root)
    found = best_first(networks[: len(found)])
    networks[: len(found)] = found
    if weights is not None and runs:
        weights = _in_order_of(found, find_networks(store, runs), weights)
    comparison = Comparison(
        sorted(set(views)), store.predictions_dir, combine, weights, calibration, latency, limit_144, loading
    )
    splits: list[Split] = ["test", "val"] if comparison.needs_val else ["test"]
    members = [load(store, network, splits, loading.root) for network in networks]
    started = time.monotonic()
    table = evaluate(members, comparison, [len(several) for several in others])
    table = replace(table, subject=subject_of(found))
    with tempfile.TemporaryDirectory() as folder:
        # Activation maps are the one thing here that runs a network again: for who wants to look at them.
        report = table if output is not None else replace(table, load_model=None)
        files = report.report_files(output or folder)
        run = _record(store, found, networks[len(found) :], table, comparison, files, time.monotonic() - started)
    return replace(table, run=run, experiment=found[0].experiment_name)


def _check_baselines(runs: Sequence[RunInfo], baselines: Sequence[Sequence[RunInfo]]) -> None:
    seen = {run.run_id for run in runs}
    for network in (network for several in baselines for network in several):
        if network.run_id in seen:
            raise UsageError("baselines", network.run_id, f"{network.name} has a row already", "name it once")
        seen.add(network.run_id)


def _check_views(views: Sequence[int], limit_144: int | None) -> None:
    for count in views:
        if count not in VIEWS:
            raise UsageError("views", count, f"known numbers of crops are {', '.join(map(str, VIEWS))}")
    if limit_144 is not None and limit_144 < 1:
        raise UsageError("limit_144", limit_144, "give a whole number of at least 1")
    if limit_144 is not None and 144 not in views:
        raise UsageError("limit_144", limit_144, "is for 144 crops", "add 144 to `views`, or leave it out")


def _check_combination(
    combine: str, weights: Sequence[float] | None, runs: Sequence[Run | str] | None, top_k: int | None
) -> None:
    if combine not in COMBINATIONS:
        raise UsageError("combine", combine, f"give one of {', '.join(COMBINATIONS)}")
    if weights is None:
        return
    reason, remedy = "", ""
    if combine == "greedy":
        reason, remedy = "`combine=greedy` finds the weights itself", "leave one of the two out"
    elif not runs or top_k is not None or any(map(is_several, runs)):
        reason = "name each weight's member, in the same order, with `runs`, each snapshot too"
        remedy = "without `top_k`"
    elif len(weights) != len(runs):
        reason = f"{counted(len(weights), 'weight')} for {counted(len(runs), 'member')}"
        remedy = "give one for each of `runs`"
    elif not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        reason = "give finite weights of at least 0, not all 0"
    if reason:
        raise UsageError("weights", list(weights), reason, remedy)


def _in_order_of(runs: Sequence[RunInfo], named: Sequence[RunInfo], weights: Sequence[float]) -> list[float]:
    weight_of = {run.run_id: weight for run, weight in zip(named, weights, strict=True)}
    return [weight_of[run.run_id] for run in runs]


def _record(
    store: Store,
    runs: Sequence[RunInfo],
    baselines: Sequence[RunInfo],
    table: Table,
    comparison: Comparison,
    files: Sequence[Path],
    seconds: float,
) -> Run:
    first, weights = runs[0], comparison.weights
    # The combination that was asked for comes after the mean of all.
    kind = "ensemble" if len(runs) > 1 else "member"
    together = {line.row.num_views: line.accuracy.mean for line in table.lines if line.row.kind == kind}
    return record_comparison(
        store,
        runs,
        name=f"ensemble_of_{len(runs)}_{first.tags['data']}",
        kind="ensemble",
        note=table.to_markdown(),
        files=files,
        params={
            "combine": comparison.combine,
            **({"weights": " ".join(map(repr, weights))} if weights is not None else {}),
        },
        tags={
            "arch": " + ".join(sorted({run.tags["arch"] for run in runs})),
            "transfer": " + ".join(sorted({run.tags["transfer"] for run in runs})),
            "seed": " ".join(run.tags.get("seed", "?") for run in runs),
            **({"baselines": " ".join(run.run_id for run in baselines)} if baselines else {}),
            **{tag: first.tags[tag] for tag in MUST_AGREE},
        },
        metrics={
            **{f"test/acc_{num_views}_crops": accuracy for num_views, accuracy in together.items()},
            "test/acc": together[min(together)],
            "time/evaluation_seconds": seconds,
        },
    )
