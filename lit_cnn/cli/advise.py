"""`lit-cnn advise`: trains regimes and networks at a few training-set sizes, and says which to take."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.cli.engine import engine_of
from lit_cnn.cli.output import print_result, tell_starting
from lit_cnn.cli.verbs import CommandParser, count_of, seconds_of
from lit_cnn.core.errors import UsageError, as_printed

if TYPE_CHECKING:
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.evaluation.advice import Trial
    from lit_cnn.search.crew import Crew
    from lit_cnn.search.planned import Planned
    from lit_cnn.training.parents import ParentRun
    from lit_cnn.training.transfer import Regime

Tried = tuple[str, "Regime", int]
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
    parser.add_argument("--parallel", type=count_of, metavar="N", help="trials at once; default: one a GPU, else 1")
    parser.add_argument("--output", type=_folder, default=Path("advice"), help="folder for the report; default: advice")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    options, of_fit = parser.parse_known_args(arguments)

    from lit_cnn.cli.precheck import arguments_of_trials, images_named

    of_fit = arguments_of_trials("advise", of_fit, parser.options)
    tell_starting(f"starting on {images_named(of_fit)} …")
    with engine_of(None, None, options.parallel, of_fit) as engine:
        from lit_cnn.cli.train import exit_code
        from lit_cnn.search.crew import Crew
        from lit_cnn.training.process import hush_lightning

        hush_lightning()
        crew = Crew(engine)
        try:
            return exit_code(lambda: _advise(options, of_fit, crew))
        finally:
            crew.close()


def _advise(options: argparse.Namespace, of_fit: list[str], crew: "Crew") -> None:
    from lit_cnn.cli.lit_cli import DataCLI, LitCLI, settled
    from lit_cnn.evaluation.advice import Advice, default_sizes
    from lit_cnn.search.planned import train_planned
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
    trials = [(arch, regime, size) for size in sizes for arch in archs for regime in regimes]
    labels = [_label(*trial) for trial in trials]
    given, why = settled(of_fit, lambda config: {**config, "children": labels})
    parsed = DataCLI(given)
    if why:
        print(as_printed(f"weights {parsed.plain_config['model']['weights'] or 'none'}: {why}"), file=sys.stderr)
    weights = _weights_of(archs, parsed.plain_config["model"]["weights"], is_chosen_here=given != of_fit)
    if None in weights.values() and set(options.regimes) != {"scratch"}:
        raise UsageError("weights", None, "the regimes but scratch need weights", "give pretrained, offline or a file")
    parent = _parent_of(trials, parsed, options.output, resume=parsed.options.resume is not None)
    planned = [_planned(trial, given, weights) for trial in trials]
    for each in reversed(planned[: len(archs) * len(regimes)]):  # what cannot be trained is refused before it starts
        setup = LitCLI("fit", each.arguments).setup
    run = train_planned(parent, setup, planned, crew, options.budget, _say)
    advice = Advice(_ended(trials, parent, data), num_images, data.image_set.name, run.id)
    print_result(advice, options.format)
    if options.format == "table":
        taken = advice.decision.chosen
        print(f"\nReport: {options.output / 'report.html'}")
        print(f"Next: lit-cnn fit with the same images, --config transfer/{taken.regime} and --model.arch {taken.arch}")
        print(f"run {advice.run}")


def _weights_of(archs: Sequence[str], weights: str | None, is_chosen_here: bool) -> dict[str, str | None]:
    """Returns what each network starts from: what was given, or of what was chosen here, each its own."""
    from lit_cnn.training.available_weights import available_weights

    if not is_chosen_here or len(archs) == 1:
        return dict.fromkeys(archs, weights)
    return {arch: available_weights(arch)[0] for arch in archs}


def _label(arch: str, regime: str, size: int) -> str:
    return f"{arch} {regime} {size}"


def _planned(trial: Tried, of_fit: Sequence[str], weights: Mapping[str, str | None]) -> "Planned":
    from lit_cnn.search.planned import Planned

    arch, regime, size = trial
    of_weights = "null" if regime == "scratch" else weights[arch]
    own = [f"--model.arch={arch}", f"--data.limit_train={size}", f"--model.weights={of_weights}"]
    own += ["--test_after_fit=false", "--report=false", "--trainer.enable_progress_bar=false"]
    # After the user's files; what the user says in options wins over it.
    arguments = [*of_fit, f"--config=transfer/{regime}", *own]
    return Planned(_label(*trial), f"{arch}, {regime}, {size:,} images", f"{arch} {regime}", arguments)


def _ended(trials: Sequence[Tried], parent: "ParentRun", data: "ImageDataModule") -> tuple["Trial", ...]:
    """Returns what the trials came to that have ended."""
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.evaluation.advice import Trial

    if any(data.options[name] != value for name, value in parent.data_options.items()):
        data = ImageDataModule(**{**data.options, **parent.data_options})  # as an earlier version began
    num_val = len(data.splits.val)
    runs = [(trial, run) for trial in trials if (run := parent.children.get(_label(*trial))) is not None]
    return tuple(
        Trial(*trial, round(run.metrics["best/val/acc"] * num_val), num_val, run.seconds or 0.0, run.id)
        for trial, run in runs
    )


def _parent_of(trials: Sequence[Tried], parsed: "DataCLI", output: Path, resume: bool) -> "ParentRun":
    """Returns the run that the trials are shown under; it keeps the report."""
    from lit_cnn.evaluation.advice import Advice
    from lit_cnn.training.parents import ParentRun

    archs = sorted({arch for arch, _, _ in trials})
    data = parsed.datamodule

    def keep(parent: "ParentRun") -> None:
        """Logs what the trials come to."""
        assert parent.logger is not None
        advice = Advice(_ended(trials, parent, data), len(data.splits.train), data.image_set.name)
        for file in advice.report_files(output):
            parent.logger.log_artifact(file, "advice")
        members = " ".join(trial.run for trial in advice.trials)
        parent.logger.set_tags({"members": members, "mlflow.note.content": advice.answer()})

    return ParentRun(
        "advice",
        resume,
        differs={
            "children": [_label(*trial) for trial in trials],
            **{section: parsed.plain_config[section] for section in ("model", "data", "trainer")},
        },
        tags={"arch": " + ".join(archs), "transfer": " + ".join(sorted({regime for _, regime, _ in trials}))},
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


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
