"""One network a fold, under one run that keeps what each says of the images that it was not trained on."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_cnn.core.errors import UsageError, at_least
from lit_cnn.core.intervals import wilson_interval
from lit_cnn.core.labels import SEPARATOR, label_of
from lit_cnn.core.words import counted
from lit_cnn.data.splits import Splits, manifest, manifest_digest
from lit_cnn.reports.fold_words import fold_sentences
from lit_cnn.reports.result import escaped_markdown
from lit_cnn.reports.run_words import DESCRIPTION
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.run import Run
from lit_cnn.training.callbacks.fit_progress import lines_apart
from lit_cnn.training.fold_report import write_fold_report
from lit_cnn.training.fold_result import FoldResult, fold_result
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, write_out_of_fold
from lit_cnn.training.parents import Conclusion, ParentRun, summarize
from lit_cnn.training.record import flatten, resolved
from lit_cnn.training.run import train_children, train_each
from lit_cnn.training.run_report import FOLDER as REPORTS
from lit_cnn.training.run_report import chosen_options
from lit_cnn.training.setup import Setup
from lit_cnn.training.training_on import seen_sentences

_LINES_APART = 10.0  # seconds between the lines of two epochs

MakeSetup = Callable[[Mapping[str, Any], int | None], Setup]
"""From options of the data module and the training seed, None for that of the configuration, to a run's setup."""


class OneFold(NamedTuple):
    """A fold: its label, the options of the data module that choose it, and the training seed, if one is chosen."""

    label: str
    options: dict[str, Any]
    seed: int | None


@dataclass(frozen=True)
class Folds:
    """Which folds are trained on.

    Attributes:
        num_folds: How many the images that are not test are cut into.
        seeds: Train all folds with each of these training seeds; None: with that of the configuration.
        split_seeds: Cut the folds anew with each of these; None: once, with the seed of the split. Test stays.

    Raises:
        UsageError: If a number is out of its range, or a seed is given twice.
    """

    num_folds: int
    seeds: tuple[int, ...] | None = None
    split_seeds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        at_least(2, folds=self.num_folds)
        for option in ("seeds", "split_seeds"):
            given = getattr(self, option)
            if given is not None and (not given or len(set(given)) < len(given)):
                raise UsageError(option, given, "give one or more different whole numbers, such as [0, 1, 2]")

    def rounds(self, prefix: str = "") -> list[list["OneFold"]]:
        """Returns the folds of each round, of which each has all images once; labels begin with the prefix."""
        return [
            [
                OneFold(f"{prefix}{self._label(cut, seed, fold)}", self._options(cut, fold), seed)
                for fold in range(self.num_folds)
            ]
            for cut in self.split_seeds or (None,)
            for seed in self.seeds or (None,)
        ]

    def _options(self, split_seed: int | None, fold: int) -> dict[str, Any]:
        return {"num_folds": self.num_folds, "fold": fold, "fold_seed": split_seed}

    def _label(self, split_seed: int | None, seed: int | None, fold: int) -> str:
        of_split = [f"split {split_seed}"] if split_seed is not None else []
        return ", ".join([*of_split, *([f"seed {seed}"] if seed is not None else []), f"fold {fold}"])

    def config_of(self, fold: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the configuration of the run above, from that of one fold's run."""
        differs = self.differs()
        return {**fold, **differs, "data": {**fold["data"], **differs["data"]}}

    def differs(self) -> dict[str, Any]:
        """Returns what that has in place of the fold's own; of the data only the options that differ."""
        cut = list(self.split_seeds) if self.split_seeds is not None else None
        of_seeds = {"seed_everything": list(self.seeds)} if self.seeds is not None else {}
        return {**of_seeds, "data": {"num_folds": self.num_folds, "fold": None, "fold_seed": cut}}

    @property
    def words(self) -> str:
        """What they are called: `5 folds`, `5 folds, 2 seeds`, `5 folds cut 3 times`."""
        times = len(self.split_seeds or ())
        cut = f" cut {times} times" if times > 1 else ""
        return f"{self.num_folds} folds{cut}" + (f", {counted(len(self.seeds), 'seed')}" if self.seeds else "")


def train_folds(
    folds: Folds,
    make: MakeSetup,
    resume: bool = False,
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> Run:
    """Trains one network a fold under one run with what they come to together, and returns that run.

    Args:
        folds: Which.
        make: Makes the setup of one of them.
        resume: Whether to go on with an unfinished run of the same folds and configuration, if there is one.
        after_each: Called with each run that has ended.
        before_each: Called with the setup of each run that is about to begin.

    Raises:
        UsageError: If a class has fewer images than there are folds, or as `train`; nothing is written then.
    """
    made = _Made(folds, make)
    parent = ParentRun(
        "folds",
        resume,
        differs=folds.differs(),
        tags={"num_folds": str(folds.num_folds), **({"seed": " ".join(map(str, folds.seeds))} if folds.seeds else {})},
        name_of=lambda name: f"{name} ({folds.words})",
        conclude=made.conclude,
        child_tags={"trial": "fold"},
        label_of=lambda params: SEPARATOR.join([label_of(_without_folds(params)), folds.words]),
    )
    with as_folds():
        run = train_children(parent, made.setups(), after_each, before_each)
    if run.id or not run.children:
        return run
    return replace(run, summary="Nothing is tracked, so no epoch is kept as the best and nothing is known out of fold.")


def train_folds_under(
    parent: ParentRun,
    folds: Folds,
    make: MakeSetup,
    prefix: str = "",
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> FoldResult | None:
    """Trains one network a fold under a run that is there for more than that, a search say, and stays open.

    Args:
        parent: That run. Children that it has already are not trained again.
        folds: Which.
        make: Makes the setup of one of them.
        prefix: What the children's labels begin with, such as `trial 7, `.
        after_each: Called with each run that has ended.
        before_each: Called with the setup of each run that is about to begin.

    Returns:
        What they came to; None if one of them ended before its first validation.

    Raises:
        UsageError: As `train`.
    """
    made = _Made(folds, make, prefix)
    with as_folds():
        train_each(parent, made.setups(), after_each, before_each)
    return made.result(parent.children)


class _Made:
    """The setups of all folds as they are made, and what is known of them when all are trained."""

    def __init__(self, folds: Folds, make: MakeSetup, prefix: str = "") -> None:
        self._make = make
        self._rounds = folds.rounds(prefix)
        self._last: Setup | None = None  # one alone: each has its own images in memory

    def setups(self) -> Iterator[tuple[str, Callable[[], Setup]]]:
        """Yields label and setup of each fold."""
        for of_round in self._rounds:
            for fold in of_round:
                yield fold.label, partial(self._setup, fold)

    def _setup(self, fold: OneFold) -> Setup:
        is_first = self._last is None
        self._last = self._make(fold.options, fold.seed)
        if not is_first:
            self._last.model.weights_note = ""  # it has been said
        return self._last

    def result(self, children: Mapping[str, Run]) -> FoldResult | None:
        """Returns what the folds came to together; None if one ended before its first validation."""
        assert self._last is not None
        return fold_result(
            [{fold.label: children[fold.label] for fold in of_round} for of_round in self._rounds], self._last
        )

    def conclude(self, parent: ParentRun) -> Conclusion:
        """Logs what the folds came to together; what cannot be kept is told."""
        logger = parent.logger
        assert logger is not None and self._last is not None
        try:
            result = self.result(parent.children)
            if result is None:
                return Conclusion(summary="A fold ended before its first validation: train longer.")
            return _log(result, parent.children, self._last, logger)
        except Exception as error:  # a full disk, say: the folds themselves are whole
            reason = " ".join(str(error).split()) or type(error).__name__
            _warn(f"what the folds came to is not kept: {reason}")
            return Conclusion()


def _log(result: FoldResult, children: Mapping[str, Run], setup: Setup, logger: JournalLogger) -> Conclusion:
    summary = summarize([child.metrics for child in children.values()])
    logger.log_metrics({"folds": len(children), **summary, **result.metrics}, step=0)
    facts, before = result.facts, setup.model.weights_trained_on
    seen = seen_sentences(before, setup.data, setup.options.store.splits_dir, of_folds=True)
    said = [*fold_sentences(facts), *seen]
    low, high = wilson_interval(facts.num_correct, facts.num_images)
    spread = {split: summary.get(f"{metric}_std") for split, metric in (("val", "best/val/acc"), ("test", "test/acc"))}
    tags = {
        f"{split}_interval": f"± {std:.3f}, {len(children)} folds" for split, std in spread.items() if std is not None
    }
    logger.set_tags({"members": " ".join(child.id for child in children.values() if child.id)})
    logger.set_tags({**tags, "oof_interval": f"[{low:.3f}, {high:.3f}] of {facts.num_images:,}"})
    if result.out_of_fold is None:
        _warn(f"no out-of-fold logits: {result.missing}")
        logger.set_tags({DESCRIPTION: escaped_markdown(" ".join(said))})
        return Conclusion(result.metrics, "\n".join(said))
    data, file = setup.data, logger.run_folder / FOLDER / LOGITS
    write_out_of_fold(file, result.out_of_fold, data.image_set)
    logger.log_artifact(file, FOLDER)
    # Members of an ensemble are compared by their val images: here those of all folds.
    pool = np.sort(np.concatenate(data.splits.folds))
    split = manifest(data.image_set, Splits(pool[:0], pool, data.splits.test))
    logger.set_tags({"val_split_digest": data.image_set.digest_of(pool), "split_digest": manifest_digest(split)})
    report = _report(result, setup, said, logger)
    where = [f"Report: {REPORTS}/{report.name} among the artifacts."] if report is not None else []
    logger.set_tags({DESCRIPTION: "\n\n".join([escaped_markdown(" ".join(said)), *where])})
    return Conclusion(result.metrics, "\n".join(said), report)


def _report(result: FoldResult, setup: Setup, said: Sequence[str], logger: JournalLogger) -> Path | None:
    if not setup.options.report:
        return None
    try:
        options = {name: value for name, value in flatten(setup.config).items() if name != "data.fold"}
        label = label_of({**resolved(options, setup.model), "seed_everything": None})
        chosen, images = chosen_options(setup.config, type(setup.model)), setup.data.image_set
        title, folder = logger.run_name or "folds", logger.run_folder / REPORTS
        files, missing = write_fold_report(result, said, title, label, chosen, images, folder)
        for file in files:
            logger.log_artifact(file, REPORTS)
    except Exception as error:  # a full disk, say
        _warn(f"no report: {' '.join(str(error).split()) or type(error).__name__}")
        return None
    if missing:
        _warn(f"the report lacks {', '.join(missing)}")
    return files[-1]


def _without_folds(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if name not in ("data.num_folds", "data.fold_seed")}


@contextlib.contextmanager
def as_folds() -> Iterator[None]:
    """Names the option that the user gave where that of the data module is wrong; spares lines of quick epochs."""
    try:
        with lines_apart(_LINES_APART):
            yield
    except UsageError as error:
        if error.option != "num_folds":
            raise
        raise UsageError("folds", error.value, error.reason, error.remedy) from error


def _warn(text: str) -> None:
    print(f"lit-cnn: warning: {text}", file=sys.stderr)
