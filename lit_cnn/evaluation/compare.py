"""`lit-cnn compare`: the runs of an experiment as a leaderboard, or two runs image by image."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.evaluation.comparison import member_names
from lit_cnn.evaluation.leaderboard import Group, Leaderboard, build_leaderboard
from lit_cnn.evaluation.members import find_members, find_networks, refuse_unlike
from lit_cnn.evaluation.mistakes import Verdict
from lit_cnn.evaluation.multi_crop import average_probabilities
from lit_cnn.evaluation.pair import Pair, build_pair
from lit_cnn.evaluation.predictions import Member, are_stored, load_network, predict_views
from lit_cnn.evaluation.report import leaderboard as board_report
from lit_cnn.evaluation.report import pair as pair_report
from lit_cnn.tracking import Store, check_writable
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.recorder import Recorder

Split = Literal["val", "test"]
Format = Literal["table", "csv", "json"]

_METRIC: dict[str, str] = {"val": "best/val/acc", "test": "test/acc"}


def compare_experiment(
    store: Store,
    experiment: str,
    *,
    filter_string: str = "",
    split: Split = "test",
    format: Format = "table",
    root: Path | None = None,
    output: Path | None = None,
) -> Leaderboard:
    """Prints the experiment's finished training runs by configuration; computes no logits, uses those stored.

    Args:
        store: Where the runs are.
        experiment: Name of the experiment.
        filter_string: Which of its runs, in MLflow's search syntax.
        split: On which images.
        format: What is printed.
        root: Folder of the images, if it is elsewhere than in training.
        output: Folder for the files, which are logged to MLflow too; default: none are written.

    Raises:
        UsageError: If nothing matches, the runs have no common ground, or the folder cannot be written.
    """
    runs = find_members(store, None, experiment, filter_string, None)
    metric = _METRIC[split]
    notes = [
        f"Left out: {run.name} ({run.run_id}) has no {metric}; it ended without a test."
        for run in runs
        if metric not in run.metrics
    ]
    runs = [run for run in runs if metric in run.metrics]
    if not runs:
        raise UsageError(f"--split {split}: no run of experiment {experiment!r} has {metric}; use --split val")
    refuse_unlike(runs, "--filter")
    unasked: list[str] = []
    groups = [
        _group(store, name, of_group, split, root, notes, unasked) for name, of_group in _by_configuration(runs).items()
    ]
    if unasked:
        notes.append(
            f"{len(unasked)} run{'s have' if len(unasked) > 1 else ' has'} no stored logits on {split}, which "
            f"lit-cnn compare --runs stores: {', '.join(unasked)}."
        )
    board = build_leaderboard(groups, experiment, split, notes)
    texts = {"csv": board_report.leaderboard_csv(board), "json": board_report.leaderboard_json(board)}
    if format == "table":
        board_report.render_leaderboard(board, _console())
    else:
        print(texts[format], end="")
    if output is not None:
        pages = {"md": board_report.leaderboard_markdown(board), "html": board_report.leaderboard_html(board)}
        files = _write_texts({f"leaderboard.{end}": text for end, text in {**texts, **pages}.items()}, output)
        _record(store, runs, f"compare_{experiment}", files, pages["md"])
    return board


def compare_two(
    store: Store,
    run_ids: Sequence[str],
    *,
    split: Split = "test",
    format: Format = "table",
    batch_size: int = 256,
    num_workers: int = 2,
    root: Path | None = None,
    output: Path | None = None,
) -> Pair:
    """Prints what one run wins over another; logits that are not stored are computed, with one view.

    Args:
        store: Where the runs are.
        run_ids: The two runs.
        split: On which images.
        format: What is printed.
        batch_size: Images per forward pass.
        num_workers: Processes that decode images.
        root: Folder of the images, if it is elsewhere than in training.
        output: Folder for the files, which are logged to MLflow too; default: only logits are written.

    Raises:
        UsageError: If a run is not there, the two have no common ground, or the folder cannot be written.
    """
    if batch_size < 1 or num_workers < 0:
        raise UsageError(f"--batch_size {batch_size} --num_workers {num_workers}: give at least 1 and at least 0")
    best_first = {run.run_id: run for run in find_members(store, run_ids, None, "", None)}
    runs = [best_first[run.run_id] for run in find_networks(store, run_ids)]
    refuse_unlike(runs)
    check_writable(store)
    members = [load_network(store, run, [split], root, "--runs") for run in runs]
    names = member_names(runs)
    verdicts = []
    for run, member, name in zip(runs, members, names, strict=True):
        indices = _by_path(member, split)
        logits = predict_views(
            member, indices, [1], store.predictions_dir, batch_size, num_workers, f"{name}, {split}"
        )[1]
        verdicts.append(_verdict(run, member, name, indices, logits))
    pair = build_pair(verdicts[0], verdicts[1], split)
    if format == "table":
        for sentence in pair_report.pair_sentences(pair):
            _console().print(sentence, markup=False, highlight=False)
    else:
        print(pair_report.pair_json(pair) if format == "json" else pair_report.pair_csv(pair), end="")
    if output is not None:
        try:
            files = pair_report.write_pair(pair, (members[0].model, members[1].model), output)
        except OSError as error:
            raise _unwritable(output, error) from error
        said = "\n".join(f"- {sentence}" for sentence in pair_report.pair_sentences(pair))
        _record(store, runs, f"compare_{runs[0].name}", files, said)
    return pair


def _by_configuration(runs: Sequence[RunInfo]) -> dict[str, list[RunInfo]]:
    """Groups runs whose params are the same but for the seed, under names that tell the groups apart.

    Of several runs with one seed the newest is kept.
    """
    grouped: dict[str, dict[str, RunInfo]] = {}
    params: dict[str, dict[str, str]] = {}
    for run in runs:
        own = {name: value for name, value in run.params.items() if name != "seed_everything"}
        key = json.dumps([run.name, own], sort_keys=True)
        params[key] = own
        seed = run.tags["seed"]
        kept = grouped.setdefault(key, {}).get(seed)
        if kept is None or run.start_time > kept.start_time:
            grouped[key][seed] = run
    named = {}
    for key, of_seeds in grouped.items():
        name = json.loads(key)[0]
        namesakes = [params[other] for other in grouped if json.loads(other)[0] == name]
        differing = sorted(
            option for option in set().union(*namesakes) if len({of_one.get(option) for of_one in namesakes}) > 1
        )
        words = ", ".join(f"{option}={params[key].get(option, '-')}" for option in differing)
        named[f"{name} ({words})" if words else name] = [of_seeds[seed] for seed in sorted(of_seeds)]
    return named


def _group(
    store: Store,
    name: str,
    runs: Sequence[RunInfo],
    split: Split,
    root: Path | None,
    notes: list[str],
    unasked: list[str],
) -> Group:
    """Returns a configuration's runs; adds to `notes` what cannot be read, to `unasked` runs without stored logits."""
    correct, multiply_adds = [], None
    for run in runs:
        try:
            member = load_network(store, run, [split], root, "--runs")
        except UsageError as error:
            notes.append(f"{run.name} ({run.run_id}) cannot be compared image by image: {error}.")
            continue
        multiply_adds = member.record.multiply_adds
        indices = _by_path(member, split)
        if are_stored(member, indices, 1, store.predictions_dir):
            logits = predict_views(member, indices, [1], store.predictions_dir)[1]
            correct.append(_verdict(run, member, name, indices, logits).correct)
        else:
            unasked.append(run.run_id)
    return Group(
        name,
        tuple(run.run_id for run in runs),
        np.array([run.metrics[_METRIC[split]] for run in runs]),
        float(np.mean([run.metrics["best/val/acc"] for run in runs])),
        np.stack(correct) if len(correct) == len(runs) else None,
        int(runs[0].tags["parameters"]),
        multiply_adds,
    )


def _by_path(member: Member, split: Split) -> np.ndarray:
    image_set = member.data.image_set
    return np.array(sorted(member.data.splits[split], key=lambda index: image_set.paths[index]))


def _verdict(run: RunInfo, member: Member, name: str, indices: np.ndarray, logits: np.ndarray) -> Verdict:
    try:
        probabilities = average_probabilities(logits)
    except UsageError as error:
        raise UsageError(f"--runs {run.run_id}: {run.name}: {error}") from error
    return Verdict(name, member.data.image_set, indices, probabilities.argmax(axis=1), probabilities)


def _console() -> Console:
    # In a file or a pipe there is no width to keep to.
    return Console() if sys.stdout.isatty() else Console(width=150)


def _write_texts(texts: dict[str, str], folder: Path) -> list[Path]:
    try:
        for name, text in texts.items():
            write_text_atomically(folder / name, text)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return [folder / name for name in texts]


def _unwritable(folder: Path, error: OSError) -> UsageError:
    return UsageError(f"--output {folder}: cannot be written ({error.strerror}); give another folder")


def _record(store: Store, runs: Sequence[RunInfo], run_name: str, files: Sequence[Path], note: str) -> None:
    """Logs the files as a run of the first run's experiment that names the runs compared."""
    recorder = Recorder(runs[0].experiment_name, store.tracking_uri)
    recorder.begin(
        run_name=run_name,
        params={f"member.{place}": run.run_id for place, run in enumerate(runs)},
        tags={
            "kind": "compare",
            "data": runs[0].tags["data"],
            "members": " ".join(run.run_id for run in runs),
            "mlflow.note.content": note,
        },
    )
    for file in files:
        recorder.log_artifact(file, "evaluation")
    recorder.end("FINISHED")
    if not recorder.wait_until_sent(timeout=60):
        print("not all of this run could be sent to MLflow; it is kept, lit-cnn sync sends it", file=sys.stderr)
