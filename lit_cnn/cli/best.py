"""`lit-cnn best FOLDER --budget 60m`: the best classifier that so much time gives, tested once, and exported."""

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_cnn.cli.output import print_result, tell_replaced, tell_starting
from lit_cnn.cli.verbs import CommandParser, seconds_of
from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.signals import handled

if TYPE_CHECKING:
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.data.datamodule import ImageDataModule
    from lit_cnn.search.best_result import Best
    from lit_cnn.search.halving import Candidate
    from lit_cnn.training.parents import ParentRun
    from lit_cnn.training.setup import Setup

_REGIMES = ("head_only", "last_stages", "full", "scratch")
# What is chosen here -> what a user does instead.
_CHOSEN = {
    "model.arch": "give `archs`",
    "model.transfer": "give `regimes`",
    "model.weights": "leave it out: those that can be had here are taken",
    "trainer.max_epochs": "give `budget`",
    "data.limit_train": "give `budget`",
    "data.num_folds": "leave it out: there are folds where there are few images",
    "seed_everything": "leave it out",
    "ckpt_path": "leave it out; `resume=auto` goes on",
}
_LOG = "trainings.log"
_SAMPLE = 64  # images that are looked at for their size


def best(arguments: list[str]) -> int:
    """Takes FOLDER, the options of `lit-cnn fit` and its own."""
    began = time.monotonic()
    parser = CommandParser(
        prog="lit-cnn best",
        description="Find the best classifier for these images that a budget of time gives: networks and transfer "
        "regimes by successive halving, the best one in full and more than once, an ensemble and mirror images if they "
        "pay; test it once, and export it. Takes FOLDER and the options of lit-cnn fit too. Ctrl-C ends the search "
        "and gives the best so far.",
        allow_abbrev=False,
    )
    parser.add_argument("--budget", type=seconds_of, default=3600.0, metavar="TIME", help="90s, 15m, 2h; default: 60m")
    parser.add_argument("--archs", nargs="+", metavar="ARCH", help="networks to try with their published weights")
    parser.add_argument(
        "--regimes", nargs="+", choices=_REGIMES, default=list(_REGIMES), help=f"default: {' '.join(_REGIMES)}"
    )
    parser.add_argument("--output", type=Path, default=Path("best"), help="folder for report and model; default: best")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    options, of_fit = parser.parse_known_args(arguments)

    from lit_cnn.cli.precheck import arguments_of_trials, images_named, value_of

    of_fit = arguments_of_trials("best", of_fit, parser.options)
    for option, remedy in _CHOSEN.items():
        if (given := value_of(of_fit, option)) is not None:
            raise UsageError(option.rpartition(".")[2], given, "is what is searched for", remedy)
    _check_folder(options.output)
    tell_replaced(options.output, "best.json", value_of(of_fit, "resume") is not None)
    tell_starting(f"starting on {images_named(of_fit)} …")
    from lit_cnn.cli.train import exit_code
    from lit_cnn.training.process import hush_lightning

    hush_lightning()
    with _signals_interrupt():
        return exit_code(lambda: _best(options, of_fit, began))


def _check_folder(folder: Path) -> None:
    """Makes the folder of the report, so that what cannot be written is found before hours of training."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _LOG).open("a").close()
    except OSError as error:
        raise UsageError("output", folder, f"cannot be written ({error.strerror})", "give another folder") from error


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Makes signals end what is between two trainings as they end a training, which has handlers of its own."""
    from lit_cnn.training.callbacks import RunInterrupted

    def stop(number: int, frame: Any) -> None:
        """Ends it."""
        raise RunInterrupted(number)

    with handled(stop, (signal.SIGINT, signal.SIGTERM)):
        yield


def _best(options: argparse.Namespace, of_fit: list[str], began: float) -> None:
    from lit_cnn.cli.lit_cli import DataCLI
    from lit_cnn.search.best import PLAN, Budget, Plan, Trainings, search_and_train
    from lit_cnn.search.candidates import candidates
    from lit_cnn.search.conclusion import conclude
    from lit_cnn.training.record import recorded_config
    from lit_cnn.training.resume import config_digest

    parsed = DataCLI(of_fit)
    data = parsed.datamodule
    num_images, num_classes = len(data.splits.train), data.num_classes
    weights = {} if options.regimes == ["scratch"] else _weights_of(options.archs)
    from_scratch = [arch for arch in options.archs if weights.get(arch) is None] if options.archs else None
    shape = (_shorter_side(data), num_images, num_classes, data.in_channels)
    tried = candidates(weights, options.regimes, from_scratch, _sizes(weights), *shape)
    if not tried:
        raise UsageError("regimes", " ".join(options.regimes), "need weights, and there are none here", "add scratch")
    resumes = parsed.options.resume is not None
    of_all = config_digest(recorded_config(parsed.plain_config), data.digests["data"])
    key = " ".join([of_all, *data.digests.values(), *(each.name for each in tried)])
    plan = Plan(options.output / PLAN, resumes, key)
    budget = Budget(options.budget, plan.spent, began)
    sizes = (len(data.splits.val), len(data.splits.test))
    _say(_planned(tried, data, options.budget))
    parent = _parent_of(tried, parsed, resumes)
    with open(options.output / _LOG, "a", encoding="utf-8") as log:
        trainings = Trainings(parent, partial(_setup, of_fit), *sizes, plan, budget, _say, log)
        with trainings.closing():
            search_and_train(trainings, tried, num_images, num_classes, budget)
            store, subject = parsed.options.store, data.image_set.name
            found = conclude(store, trainings, subject, budget, options.output, _say)
            found = replace(found, was_stopped=trainings.was_stopped)
            *files, page = found.report_files(options.output)
            _keep(parent, found, [*files, page])
    if not trainings.was_stopped:
        plan.finish()
    print_result(found, options.format)
    if options.format == "table":
        print(f"\nReport: {page}")
        if found.export is not None:
            print(f"Next: lit-cnn predict FOLDER --model {found.export}, lit-cnn ui")
        print(f"run {found.run}")


def _keep(parent: "ParentRun", found: "Best", files: Sequence[Path]) -> None:
    """Keeps the report with the run of the search too."""
    if parent.logger is None:
        return
    for file in files:
        parent.logger.log_artifact(file, "best")
    parent.logger.set_tags({"mlflow.note.content": found.answer()})


def _weights_of(archs: Sequence[str] | None) -> dict[str, str | None]:
    """Returns the weights that can be had of each network; None where there are none."""
    from lit_cnn.search.candidates import ARCHS
    from lit_cnn.training.available_weights import available_weights

    found = dict[str, str | None]()
    for arch in archs or ARCHS:
        try:
            found[arch], why = available_weights(arch)
        except UsageError as error:
            raise UsageError("archs", error.value, error.reason, error.remedy) from error
        if found[arch] is None and archs:
            _say(f"{arch}: from random weights; {why}")
    return found


def _sizes(weights: Mapping[str, str | None]) -> dict[str, int]:
    from lit_cnn.training.weights import expected_images

    return {
        arch: int((expected_images(arch, of_arch) or {}).get("image_size", 224))
        for arch, of_arch in weights.items()
        if of_arch is not None
    }


def _shorter_side(data: "ImageDataModule") -> int:
    """Returns the median of the shorter sides of some images, in pixels."""
    images = data.image_set.images
    some = [images[int(place)] for place in np.linspace(0, len(images) - 1, min(_SAMPLE, len(images)))]
    return int(np.median([min(image.shape[:2]) for image in some]))


def _setup(
    of_fit: Sequence[str], candidate: "Candidate", options: Mapping[str, Any], epochs: int, seed: int
) -> "Setup":
    from lit_cnn.cli.configs import available_configs
    from lit_cnn.cli.lit_cli import LitCLI
    from lit_cnn.cli.precheck import value_of

    weights = "null" if candidate.weights is None else candidate.weights
    recipe = f"model/{candidate.arch}"
    own = [
        *([f"--config={recipe}"] if candidate.weights is None and recipe in available_configs() else []),
        *candidate.options,
        f"--model.arch={candidate.arch}",
        f"--model.weights={weights}",
        f"--model.transfer={candidate.regime}",
        *(f"--data.{name}={value}" for name, value in options.items() if value is not None),
        f"--trainer.max_epochs={epochs}",
        f"--seed_everything={seed}",
        "--test_after_fit=false",
        "--report=false",
        "--trainer.enable_progress_bar=false",
    ]
    # What the user says wins, but for what is searched.
    kept = [text for text in own if text.startswith("--config") or value_of(of_fit, _name(text)) is None]
    return LitCLI("fit", [*of_fit, *kept]).setup


def _name(argument: str) -> str:
    return argument.removeprefix("--").partition("=")[0]


def _planned(tried: Sequence["Candidate"], data: "ImageDataModule", seconds: float) -> str:
    """Returns what is going to happen."""
    from lit_cnn.core.words import counted, duration, joined
    from lit_cnn.search.best import FEW_VAL

    splits = ", ".join(f"{len(data.splits[split]):,} {split}" for split in ("train", "val", "test"))
    archs = joined(list(dict.fromkeys(each.arch for each in tried)))
    regimes = joined(list(dict.fromkeys(each.regime for each in tried)))
    more_than_once = "on folds" if len(data.splits.val) < FEW_VAL else "with several seeds"
    return "\n".join(
        [
            f"best for {data.image_set.name} in {duration(round(seconds))}: {data.num_classes:,} classes, {splits}",
            f"tries {archs}, {regimes}: {counted(len(tried), 'configuration')} by successive halving,",
            f"then trains the best in full, {more_than_once}, takes an ensemble and mirror images if they pay,",
            "tests that once, and exports it. Ctrl-C gives the best so far.",
        ]
    )


def _parent_of(tried: Sequence["Candidate"], parsed: "DataCLI", resume: bool) -> "ParentRun":
    from lit_cnn.training.parents import ParentRun

    subject = parsed.datamodule.image_set.name
    return ParentRun(
        "best",
        resume,
        differs={
            "children": [f"best: {each.name}" for each in tried],
            **{section: parsed.plain_config[section] for section in ("model", "data", "trainer")},
        },
        tags={
            "arch": " + ".join(sorted({each.arch for each in tried})),
            "transfer": " + ".join(sorted({each.regime for each in tried})),
        },
        name_of=lambda name: f"best_{subject}",
        conclude=lambda parent: None,
        child_tags={"trial": "best"},
        label_of=lambda params: "best",
    )


def _say(text: str) -> None:
    print(as_printed(text), file=sys.stderr, flush=True)
