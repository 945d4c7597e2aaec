"""`lit-cnn ensemble`: tracked runs, alone and combined, with one and with many crops, in one table."""

import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.words import counted
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.comparison import COMBINATIONS, Comparison, compare
from lit_cnn.evaluation.members import MUST_AGREE, find_members, find_networks, is_several, refuse_unlike
from lit_cnn.evaluation.mistakes import Verdict
from lit_cnn.evaluation.multi_crop import VIEWS
from lit_cnn.evaluation.predictions import load_network
from lit_cnn.evaluation.report import (
    Table,
    plot_accuracy,
    plot_pareto,
    plot_reliability,
    render,
    to_csv,
    to_html,
    to_json,
    to_markdown,
    write_verdict,
)
from lit_cnn.tracking import Store, check_writable
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.training.classifier import LitClassifier


def ensemble_runs(
    store: Store,
    *,
    run_ids: Sequence[str] | None = None,
    experiment: str | None = None,
    filter_string: str = "",
    top_k: int | None = None,
    beside: Sequence[str] = (),
    views: Sequence[int] = (1, 10),
    limit_144: int | None = None,
    combine: str = "mean",
    weights: Sequence[float] | None = None,
    calibration: bool = False,
    latency: bool = False,
    batch_size: int = 256,
    num_workers: int = 2,
    root: Path | None = None,
    output: Path | None = None,
) -> Table:
    """Evaluates runs' best checkpoints on the test images, alone and combined, and logs the comparison as a run.

    Every member sees every view once, with its own preprocessing; probabilities are averaged over views.

    Args:
        store: Where the runs are.
        run_ids: The members by the names of `find_networks`; or give `experiment`.
        experiment: Take the members from this experiment.
        filter_string: Which of its runs, in MLflow's search syntax.
        top_k: That many of them, best on val first.
        beside: Names of networks that have rows of their own and no part in the ensemble; `RUN_ID/snapshots` one for
            the mean of all.
        views: Numbers of crops per image.
        limit_144: With 144 crops use at most that many images, stratified; default: all.
        combine: How members are combined, one of `COMBINATIONS`; the mean of all is shown beside it.
        weights: One for each of `run_ids`, in their order; default: equal ones.
        calibration: Fit a temperature for each row on val.
        latency: Time the networks' forward passes.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        root: Folder of the images, if it is elsewhere than in training.
        output: Folder for table and picture besides MLflow.

    Returns:
        The table.

    Raises:
        UsageError: If the members cannot be found or may not be averaged, or an option cannot be used.
    """
    _check_options(run_ids, experiment, top_k, batch_size, num_workers)
    _check_views(views, limit_144)
    _check_combination(combine, weights, run_ids, top_k)
    check_writable(store)
    runs = find_members(store, run_ids, experiment, filter_string, top_k)
    alternatives = [find_members(store, [name], None, "", None) for name in beside]
    _check_beside(runs, alternatives)
    networks = [*runs, *(network for several in alternatives for network in several)]
    refuse_unlike(networks)
    if weights is not None and run_ids:
        weights = _in_order_of(runs, find_networks(store, run_ids), weights)
    comparison = Comparison(
        sorted(set(views)),
        store.predictions_dir,
        combine,
        weights,
        calibration,
        latency,
        limit_144,
        batch_size,
        num_workers,
    )
    splits: list[Split] = ["test", "val"] if comparison.needs_val else ["test"]
    members = [load_network(store, network, splits, root, "--runs") for network in networks]
    started = time.monotonic()
    table, verdict = compare(networks, members, comparison, [len(several) for several in alternatives])
    # In a file, a pipe or a notebook there is no width to keep to, and the table has all its columns at 110.
    console = Console() if sys.stdout.isatty() else Console(width=110, force_jupyter=False)
    render(table, console)
    with tempfile.TemporaryDirectory() as folder:
        # Activation maps are the one thing here that asks a network again: for who wants to look at them.
        looked_into = members[0].model if output is not None else None
        files = write_report(table, verdict, looked_into, Path(output or folder))
        recorder = _record(store, runs, networks[len(runs) :], table, comparison, files, time.monotonic() - started)
    sent = recorder.wait_until_sent(timeout=60)
    console.print(
        f"run {recorder.run_id or recorder.key} in experiment {recorder.experiment_name}; see it with: lit-cnn ui"
    )
    if not sent:
        print("not all of this run could be sent to MLflow; it is kept, lit-cnn sync sends it", file=sys.stderr)
    return table


def write_report(table: Table, verdict: Verdict, model: LitClassifier | None, folder: Path) -> list[Path]:
    """Writes the table as CSV, Markdown and JSON, its pictures, and a page with all of it; returns the files.

    Args:
        table: The table.
        verdict: Of the combination that was asked for; its mistakes are shown.
        model: The network whose class-activation maps of these are drawn; None for no maps.
        folder: Where the files go.

    Raises:
        UsageError: If the folder cannot be written.
    """
    texts = {
        "table.csv": to_csv(table),
        "table.md": to_markdown(table),
        "table.json": to_json(table),
    }
    pictures = {"accuracy.png": plot_accuracy, "pareto.png": plot_pareto, "reliability.png": plot_reliability}
    try:
        for name, text in texts.items():
            write_text_atomically(folder / name, text)
        for name, draw in pictures.items():
            draw(table, folder / name)
        of_verdict, appendix = write_verdict(verdict, folder, model)
        write_text_atomically(folder / "report.html", to_html(table, appendix))
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be written ({error.strerror}); give another folder") from error
    return [folder / name for name in (*texts, *pictures, "report.html")] + of_verdict


def _check_options(
    run_ids: Sequence[str] | None,
    experiment: str | None,
    top_k: int | None,
    batch_size: int,
    num_workers: int,
) -> None:
    if bool(run_ids) == bool(experiment):
        raise UsageError(
            "--runs, --experiment: give the members by one of the two: --runs ID ID … or --experiment NAME"
        )
    if top_k is not None and top_k < 1:
        raise UsageError(f"--top_k {top_k}: give a whole number of at least 1")
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: give a whole number of at least 1")
    if num_workers < 0:
        raise UsageError(f"--num_workers {num_workers}: give 0 or more")


def _check_beside(runs: Sequence[RunInfo], alternatives: Sequence[Sequence[RunInfo]]) -> None:
    seen = {run.run_id for run in runs}
    for network in (network for several in alternatives for network in several):
        if network.run_id in seen:
            raise UsageError(f"--beside {network.run_id}: {network.name} has a row already; name it once")
        seen.add(network.run_id)


def _check_views(views: Sequence[int], limit_144: int | None) -> None:
    for count in views:
        if count not in VIEWS:
            raise UsageError(f"--views {count}: known numbers of crops are {', '.join(map(str, VIEWS))}")
    if limit_144 is not None and limit_144 < 1:
        raise UsageError(f"--limit_144 {limit_144}: give a whole number of at least 1")
    if limit_144 is not None and 144 not in views:
        raise UsageError(f"--limit_144 {limit_144}: is for 144 crops; add 144 to --views, or leave it out")


def _check_combination(
    combine: str, weights: Sequence[float] | None, run_ids: Sequence[str] | None, top_k: int | None
) -> None:
    if combine not in COMBINATIONS:
        raise UsageError(f"--combine {combine}: give one of {', '.join(COMBINATIONS)}")
    if weights is None:
        return
    given = f"--weights {' '.join(f'{weight:g}' for weight in weights)}"
    if combine == "greedy":
        raise UsageError(f"{given}: --combine greedy finds the weights itself; leave one of the two out")
    if not run_ids or top_k is not None or any(map(is_several, run_ids)):
        raise UsageError(
            f"{given}: name each weight's member, in the same order, with --runs, each snapshot too; without --top_k"
        )
    if len(weights) != len(run_ids):
        how_many = f"{counted(len(weights), 'weight')} for {counted(len(run_ids), 'member')}"
        raise UsageError(f"{given}: {how_many}; give one for each of --runs")
    if not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
        raise UsageError(f"{given}: give finite weights of at least 0, not all 0")


def _in_order_of(runs: Sequence[RunInfo], named: Sequence[RunInfo], weights: Sequence[float]) -> list[float]:
    weight_of = {run.run_id: weight for run, weight in zip(named, weights, strict=True)}
    return [weight_of[run.run_id] for run in runs]


def _record(
    store: Store,
    runs: Sequence[RunInfo],
    beside: Sequence[RunInfo],
    table: Table,
    comparison: Comparison,
    files: Sequence[Path],
    seconds: float,
) -> Recorder:
    first = runs[0]
    recorder = Recorder(first.experiment_name, store.tracking_uri)
    archs = sorted({run.tags["arch"] for run in runs})
    recorder.begin(
        run_name=f"ensemble_of_{len(runs)}_{first.tags['data']}",
        params={
            "combine": comparison.combine,
            **({"weights": " ".join(map(repr, comparison.weights))} if comparison.weights is not None else {}),
            **{f"member.{place}": run.run_id for place, run in enumerate(runs)},
        },
        tags={
            "kind": "ensemble",
            "arch": " + ".join(archs),
            "transfer": " + ".join(sorted({run.tags["transfer"] for run in runs})),
            "data": first.tags["data"],
            "seed": " ".join(run.tags.get("seed", "?") for run in runs),
            "members": " ".join(run.run_id for run in runs),
            **({"beside": " ".join(run.run_id for run in beside)} if beside else {}),
            **{tag: first.tags[tag] for tag in MUST_AGREE},
            "mlflow.note.content": to_markdown(table),
        },
    )
    # The combination that was asked for comes after the mean of all.
    together = {line.row.num_views: line.accuracy.mean for line in table.lines if line.row.kind == "ensemble"}
    metrics = {f"test/acc_{num_views}_crops": accuracy for num_views, accuracy in together.items()}
    metrics["test/acc"] = together[min(together)]
    metrics["time/evaluation_seconds"] = seconds
    recorder.log_metrics(metrics)
    for file in files:
        recorder.log_artifact(file, "evaluation")
    recorder.end("FINISHED")
    return recorder
