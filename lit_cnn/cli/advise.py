"""`lit-cnn advise`: trains regimes and networks at a few training-set sizes, and says which to take."""

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.cli.output import print_result
from lit_cnn.cli.verbs import CommandParser, seconds_of
from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.words import duration

if TYPE_CHECKING:
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.evaluation.advice import Trial
    from lit_cnn.training.parents import ParentRun
    from lit_cnn.training.setup import Setup
    from lit_cnn.training.transfer import Regime

Planned = tuple[str, "Regime", int]
"""A trial: architecture, regime, number of training images."""

_REGIMES = ("head_only", "last_stages", "full", "scratch")


def advise(arguments: list[str]) -> int:
    """Takes the options of `lit-cnn fit` and six of its own; every trial is a tracked run."""
    parser = CommandParser(
        prog="lit-cnn advise",
        description="Train transfer regimes, and networks if several are given, at a few training-set sizes of these "
        "images; print accuracy on val with its interval and the time of each, draw them, and say which to take. Every "
        "trial is a tracked run. Takes FOLDER and the options of lit-cnn fit too: --config, --model.weights.",
        allow_abbrev=False,
    )
    parser.add_argument("--archs", nargs="+", metavar="ARCH", help="networks to try; default: that of --model.arch")
    parser.add_argument(
        "--regimes", nargs="+", choices=_REGIMES, default=list(_REGIMES), help=f"default: {' '.join(_REGIMES)}"
    )
    parser.add_argument("--sizes", nargs="+", type=_size, help="training images; default: a sixteenth, a quarter, all")
    parser.add_argument("--budget", type=seconds_of, metavar="TIME", help="15m: begin no trial that would end later")
    parser.add_argument("--output", type=_folder, default=Path("advice"), help="folder for the report; default: advice")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    options, of_fit = parser.parse_known_args(arguments)

    from lit_cnn.cli.precheck import arguments_of_trials

    of_fit = arguments_of_trials("advise", of_fit, parser.options)
    from lit_cnn.cli.train import exit_code
    from lit_cnn.training.process import hush_lightning

    hush_lightning()
    return exit_code(lambda: _advise(options, of_fit))


def _advise(options: argparse.Namespace, of_fit: list[str]) -> None:
    from lit_cnn.cli.lit_cli import DataCLI, settled
    from lit_cnn.evaluation.advice import Advice, default_sizes
    from lit_cnn.training.run import train_children
    from lit_cnn.training.transfer import starting_guess

    parsed = DataCLI(of_fit)
    data, archs = parsed.datamodule, options.archs or [parsed.plain_config["model"]["arch"]]
    num_images = len(data.splits.train)
    sizes = sorted(set(options.sizes or default_sizes(num_images, data.num_classes)))
    if sizes[-1] > num_images:
        raise UsageError("sizes", sizes[-1], f"there are {num_images} training images", "give at most that many")
    guess = starting_guess(num_images, data.num_classes)
    regimes = sorted(options.regimes, key=lambda regime: regime != guess)
    print(f"starting guess for {num_images:,} images of {data.num_classes} classes: {guess}", file=sys.stderr)
    planned = [(arch, regime, size) for size in sizes for arch in archs for regime in regimes]
    labels = [_label(*trial) for trial in planned]
    given, why = settled(of_fit, lambda config: {**config, "children": labels})
    parsed = DataCLI(given)
    if why:
        print(as_printed(f"weights {parsed.plain_config['model']['weights'] or 'none'}: {why}"), file=sys.stderr)
    weights = _weights_of(archs, parsed.plain_config["model"]["weights"], is_chosen_here=given != of_fit)
    if None in weights.values() and set(options.regimes) != {"scratch"}:
        raise UsageError("weights", None, "the regimes but scratch need weights", "give pretrained, offline or a file")
    trials: list[Trial] = []
    parent = _parent_of(planned, parsed, trials, options.output, resume=parsed.options.resume is not None)
    setups = _setups(planned, options.budget, trials, parent, data, given, weights)
    run = train_children(parent, setups)
    advice = Advice(tuple(trials), num_images, data.image_set.name, run.id)
    print_result(advice, options.format)
    if options.format == "table":
        taken = advice.decision.chosen
        print(f"\nReport: {options.output / 'report.html'}")
        print(f"Next: lit-cnn fit with the same images, --config transfer/{taken.regime} and --model.arch {taken.arch}")
        print(f"run {run.id}")


def _weights_of(archs: Sequence[str], weights: str | None, is_chosen_here: bool) -> dict[str, str | None]:
    """Returns what each network starts from: what was given, or of what was chosen here, each its own."""
    from lit_cnn.training.available_weights import available_weights

    if not is_chosen_here or len(archs) == 1:
        return dict.fromkeys(archs, weights)
    return {arch: available_weights(arch)[0] for arch in archs}


def _setups(
    planned: Sequence[Planned],
    budget: float | None,
    trials: list["Trial"],
    parent: "ParentRun",
    data: "ImageDataModule",
    of_fit: list[str],
    weights: Mapping[str, str | None],
) -> Iterator[tuple[str, Callable[[], "Setup"]]]:
    """Yields the setups of the trials that the budget has time for, and adds each to `trials` when it has ended."""
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.evaluation.advice import Trial

    started, taken = time.monotonic(), dict[tuple[str, str], float]()
    for number, (arch, regime, size) in enumerate(planned, start=1):
        spent = time.monotonic() - started
        # At least as long as the last, smaller one of its kind.
        if budget is not None and spent + taken.get((arch, regime), 0.0) >= budget:
            print(f"{arch}, {regime}, {size:,} images: left out, --budget {duration(budget)} is spent", file=sys.stderr)
            continue
        print(f"trial {number} of {len(planned)}: {arch}, {regime}, {size:,} images", file=sys.stderr)
        begun, label = time.monotonic(), _label(arch, regime, size)
        yield label, partial(_setup, arch, regime, size, of_fit, weights[arch])
        run = parent.children[label]
        seconds = taken[arch, regime] = run.seconds or time.monotonic() - begun
        if any(data.options[name] != value for name, value in parent.data_options.items()):
            data = ImageDataModule(**{**data.options, **parent.data_options})  # as an earlier version began
        num_val = len(data.splits.val)
        correct = round(run.metrics["best/val/acc"] * num_val)
        trials.append(Trial(arch, regime, size, correct, num_val, seconds, run.id))
    if not trials:
        raise UsageError("budget", duration(budget or 0.0), "ended before the first trial did", "give more")


def _label(arch: str, regime: str, size: int) -> str:
    return f"{arch} {regime} {size}"


def _setup(arch: str, regime: "Regime", size: int, of_fit: list[str], weights: str | None) -> "Setup":
    from lit_cnn.cli.lit_cli import LitCLI

    own = [f"--model.arch={arch}", f"--data.limit_train={size}", "--test_after_fit=false", "--report=false"]
    own.append(f"--model.weights={'null' if regime == 'scratch' else weights}")
    # After the user's files; what the user says in options wins over it.
    return LitCLI("fit", [*of_fit, f"--config=transfer/{regime}", *own]).setup


def _parent_of(
    planned: Sequence[Planned], parsed: "DataCLI", trials: list["Trial"], output: Path, resume: bool
) -> "ParentRun":
    """Returns the run that the trials are shown under; it keeps the report."""
    from lit_cnn.evaluation.advice import Advice
    from lit_cnn.training.parents import ParentRun

    archs = sorted({arch for arch, _, _ in planned})
    data = parsed.datamodule

    def keep(parent: "ParentRun") -> None:
        """Logs what the trials come to."""
        assert parent.logger is not None
        advice = Advice(tuple(trials), len(data.splits.train), data.image_set.name)
        for file in advice.report_files(output):
            parent.logger.log_artifact(file, "advice")
        members = " ".join(trial.run for trial in trials)
        parent.logger.set_tags({"members": members, "mlflow.note.content": advice.answer()})

    return ParentRun(
        "advice",
        resume,
        differs={
            "children": [_label(*trial) for trial in planned],
            **{section: parsed.plain_config[section] for section in ("model", "data", "trainer")},
        },
        tags={"arch": " + ".join(archs), "transfer": " + ".join(sorted({regime for _, regime, _ in planned}))},
        name_of=lambda name: f"advice_{data.image_set.name}",
        conclude=keep,
        child_tags={"trial": "advice"},
    )


def _folder(text: str) -> Path:
    if text.endswith(".png"):  # what it was up to 0.3
        raise argparse.ArgumentTypeError(f"{text}: give a folder; the picture is advice.png in it, beside report.html")
    return Path(text)


def _size(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give numbers of training images, such as 50 500")
    return int(text)
