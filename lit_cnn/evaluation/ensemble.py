"""`lit-cnn ensemble`: tracked runs, alone and averaged, with one and with many crops, in one table."""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from lit_cnn.errors import UsageError
from lit_cnn.evaluation.multi_crop import VIEWS, average_probabilities
from lit_cnn.evaluation.predictions import Member, load_member, predict_views
from lit_cnn.evaluation.report import (
    Row,
    Table,
    build_table,
    plot_accuracy,
    render,
    sentences,
    to_csv,
    to_html,
    to_json,
    to_markdown,
)
from lit_cnn.files import write_text_atomically
from lit_cnn.tracking import Store, check_writable, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.recorder import Recorder

_MUST_AGREE = {
    "class_names": "class names",
    "test_split_digest": "test images",
    # Val chose each member's checkpoint, and the member that all others are compared with.
    "val_split_digest": "validation images",
}


def ensemble_runs(
    store: Store,
    *,
    run_ids: Sequence[str] | None = None,
    experiment: str | None = None,
    filter_string: str = "",
    top_k: int | None = None,
    views: Sequence[int] = (1, 10),
    batch_size: int = 256,
    num_workers: int = 2,
    root: Path | None = None,
    output: Path | None = None,
) -> Table:
    """Evaluates runs' best checkpoints on the test images, alone and averaged, and logs the comparison as a run.

    Every member sees every view once, with its own preprocessing; probabilities are averaged.

    Args:
        store: Where the runs are.
        run_ids: The members by id; or give `experiment`.
        experiment: Take the members from this experiment.
        filter_string: Which of its runs, in MLflow's search syntax.
        top_k: That many of them, best on val first.
        views: Numbers of crops per image.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        root: Folder of the images, if it is elsewhere than in training.
        output: Folder for table and picture besides MLflow.

    Returns:
        The table.

    Raises:
        UsageError: If the members cannot be found or may not be averaged, or an option cannot be used.
    """
    _check_options(run_ids, experiment, top_k, views, batch_size, num_workers)
    check_writable(store)
    runs = find_members(store, run_ids, experiment, filter_string, top_k)
    refuse_unlike(runs)
    members = [_load(store, run, root) for run in runs]
    started = time.monotonic()
    table = compare(
        runs, members, sorted(set(views)), store.journal_dir.parent / "predictions", batch_size, num_workers
    )
    # In a file or a pipe there is no width to keep to, and the table has all its columns at 110.
    console = Console() if sys.stdout.isatty() else Console(width=110)
    render(table, console)
    with tempfile.TemporaryDirectory() as folder:
        files = write_report(table, Path(output or folder))
        recorder = _record(store, runs, table, files, time.monotonic() - started)
    sent = recorder.wait_until_sent(timeout=60)
    console.print(
        f"run {recorder.run_id or recorder.key} in experiment {recorder.experiment_name}; see it with: lit-cnn ui"
    )
    if not sent:
        print("not all of this run could be sent to MLflow; it is kept, lit-cnn sync sends it", file=sys.stderr)
    return table


def find_members(
    store: Store, run_ids: Sequence[str] | None, experiment: str | None, filter_string: str, top_k: int | None
) -> list[RunInfo]:
    """Returns the members' runs, best on val first.

    Raises:
        UsageError: If an id is not there, no run matches, there are fewer than `top_k`, or a run has no val accuracy.
    """
    if run_ids:
        runs = queries.find_runs(store, list(run_ids))
    else:
        assert experiment is not None
        ours = "tags.kind = 'fit' and attributes.status = 'FINISHED'"
        wanted = f"{ours} and {filter_string}" if filter_string.strip() else ours
        runs = queries.search_runs(store, experiment, wanted)
    for run in runs:
        if run.tags.get("kind") != "fit":
            raise UsageError(f"--runs {run.run_id}: {run.name} is no training run; give runs of lit-cnn fit")
        if "best/val/acc" not in run.metrics:
            raise UsageError(
                f"--runs {run.run_id}: {run.name} has no best/val/acc; it ended before its first validation"
            )
    ids = [run.run_id for run in runs]
    if len(set(ids)) < len(ids):
        raise UsageError(f"--runs {' '.join(run_ids or ids)}: a run is named twice; name each member once")
    # Ties go to the older run, so that the order does not depend on the store.
    runs.sort(key=lambda run: (-run.metrics["best/val/acc"], run.tags.get("seed", ""), run.run_id))
    if top_k is not None and len(runs) < top_k:
        raise UsageError(f"--top_k {top_k}: only {len(runs)} runs match; give at most {len(runs)}")
    return runs[:top_k]


def refuse_unlike(runs: Sequence[RunInfo]) -> None:
    """Refuses members that were not trained for the same classes, in the same order, on the same split.

    Raises:
        UsageError: Naming the two runs and what differs.
    """
    first = runs[0]
    for run in runs[1:]:
        for tag, what in _MUST_AGREE.items():
            if run.tags.get(tag) != first.tags.get(tag):
                raise UsageError(
                    f"--runs: {first.run_id} ({first.name}) and {run.run_id} ({run.name}) differ in their {what}; "
                    "average only runs of the same classes, in the same order, and the same split"
                )


def compare(
    runs: Sequence[RunInfo],
    members: Sequence[Member],
    views: Sequence[int],
    folder: Path,
    batch_size: int = 256,
    num_workers: int = 2,
) -> Table:
    """Evaluates the members, alone and averaged, with each number of views.

    Args:
        runs: The members' runs, best on val first.
        members: The members.
        views: Numbers of crops per image, ascending.
        folder: Where logits are stored.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
    """
    probabilities: dict[int, list[np.ndarray]] = {count: [] for count in views}
    targets: np.ndarray | None = None
    names = member_names(runs)
    for run, member, name in zip(runs, members, names, strict=True):
        indices = _by_path(member)
        labels = member.data.image_set.labels[indices]
        assert targets is None or np.array_equal(targets, labels), "equal digests, yet other labels"
        targets = labels
        logits = predict_views(member, indices, views, folder, batch_size, num_workers, label=name)
        for count in views:
            probabilities[count].append(_averaged(logits[count], run))
    assert targets is not None
    rows = []
    for count in views:
        for run, name, one in zip(runs, names, probabilities[count], strict=True):
            rows.append(_row(name, "member", 1, count, one, targets, run))
        together = np.mean(probabilities[count], axis=0)
        rows.append(_row(f"ensemble of {len(runs)}", "ensemble", len(runs), count, together, targets, None))
    return build_table(rows, rows[0], num_classes=len(members[0].class_names))


def write_report(table: Table, folder: Path) -> list[Path]:
    """Writes table.csv, .html, .md, .json and accuracy.png into a folder and returns their paths.

    Raises:
        UsageError: If the folder cannot be written.
    """
    texts = {
        "table.csv": to_csv(table),
        "table.html": to_html(table),
        "table.md": to_markdown(table),
        "table.json": to_json(table),
    }
    try:
        for name, text in texts.items():
            write_text_atomically(folder / name, text)
        plot_accuracy(table, folder / "accuracy.png")
    except OSError as error:
        raise UsageError(f"--output {folder}: cannot be written ({error.strerror}); give another folder") from error
    return [folder / name for name in (*texts, "accuracy.png")]


def _check_options(
    run_ids: Sequence[str] | None,
    experiment: str | None,
    top_k: int | None,
    views: Sequence[int],
    batch_size: int,
    num_workers: int,
) -> None:
    if bool(run_ids) == bool(experiment):
        raise UsageError(
            "--runs, --experiment: give the members by one of the two: --runs ID ID … or --experiment NAME"
        )
    if top_k is not None and top_k < 1:
        raise UsageError(f"--top_k {top_k}: give a whole number of at least 1")
    for count in views:
        if count not in VIEWS:
            raise UsageError(f"--views {count}: known numbers of crops are {', '.join(map(str, VIEWS))}")
    if batch_size < 1:
        raise UsageError(f"--batch_size {batch_size}: give a whole number of at least 1")
    if num_workers < 0:
        raise UsageError(f"--num_workers {num_workers}: give 0 or more")


def _load(store: Store, run: RunInfo, root: Path | None) -> Member:
    member = load_member(queries.best_checkpoint(store, run), root)
    if member.data.digests["test"] != run.tags["test_split_digest"]:
        raise UsageError(
            f"--runs {run.run_id}: the test images in {member.data.image_set.source} are not those that {run.name} was "
            "trained with (their digest differs); bring them back, or name their folder with --root"
        )
    return member


def _averaged(logits: np.ndarray, run: RunInfo) -> np.ndarray:
    try:
        return average_probabilities(logits)
    except UsageError as error:
        raise UsageError(f"--runs {run.run_id}: {run.name}: {error}") from error


def _by_path(member: Member) -> np.ndarray:
    """Returns the test images in the order of their paths: the same for every member."""
    image_set = member.data.image_set
    return np.array(sorted(member.data.splits.test, key=lambda index: image_set.paths[index]))


def member_names(runs: Sequence[RunInfo]) -> list[str]:
    """Returns the shortest names that tell the members apart: architecture and seed, run name and seed, or run id."""
    seeds = [run.tags.get("seed", "?") for run in runs]
    short = [f"{run.tags['arch'].rpartition('/')[2]} seed {seed}" for run, seed in zip(runs, seeds, strict=True)]
    full = [f"{run.name} seed {seed}" for run, seed in zip(runs, seeds, strict=True)]
    for names in (short, full):
        if len(set(names)) == len(runs):
            return names
    return [f"{name} {run.run_id[:8]}" for name, run in zip(short, runs, strict=True)]


def _row(
    name: str,
    kind: str,
    num_models: int,
    num_views: int,
    probabilities: np.ndarray,
    targets: np.ndarray,
    run: RunInfo | None,
) -> Row:
    return Row(
        name=name,
        kind="member" if kind == "member" else "ensemble",
        num_models=num_models,
        num_views=num_views,
        forward_passes=num_models * num_views,
        correct=probabilities.argmax(1) == targets,
        val_accuracy=run.metrics["best/val/acc"] if run else None,
        run_id=run.run_id if run else None,
    )


def _record(store: Store, runs: Sequence[RunInfo], table: Table, files: Sequence[Path], seconds: float) -> Recorder:
    first = runs[0]
    recorder = Recorder(first.experiment_name, store.tracking_uri)
    archs = sorted({run.tags["arch"] for run in runs})
    recorder.begin(
        run_name=f"ensemble_of_{len(runs)}_{first.tags['data']}",
        params={f"member.{place}": run.run_id for place, run in enumerate(runs)},
        tags={
            "kind": "ensemble",
            "arch": " + ".join(archs),
            "transfer": " + ".join(sorted({run.tags["transfer"] for run in runs})),
            "data": first.tags["data"],
            "seed": " ".join(run.tags.get("seed", "?") for run in runs),
            "members": " ".join(run.run_id for run in runs),
            **{tag: first.tags[tag] for tag in _MUST_AGREE},
            "mlflow.note.content": "\n\n".join((*sentences(table), to_markdown(table))),
        },
    )
    together = [line for line in table.lines if line.row.kind == "ensemble"]
    metrics = {f"test/acc_{line.row.num_views}_crops": line.accuracy.mean for line in together}
    metrics["test/acc"] = together[0].accuracy.mean
    metrics["time/evaluation_seconds"] = seconds
    recorder.log_metrics(metrics)
    for file in files:
        recorder.log_artifact(file, "evaluation")
    recorder.end("FINISHED")
    return recorder
