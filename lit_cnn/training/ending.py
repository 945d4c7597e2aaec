"""The end of a run: what it came to in words, its description in MLflow and its report."""

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.reports.predictions import Predictions, confusion_matrix
from lit_cnn.reports.result import escaped_markdown
from lit_cnn.reports.run_words import DESCRIPTION, Facts, sentences
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.callbacks.test_outputs import TestOutputs
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.history import read_history
from lit_cnn.training.metrics import log_now
from lit_cnn.training.out_of_fold import FOLDER as OUT_OF_FOLD
from lit_cnn.training.out_of_fold import OUTPUTS, Outputs, write_outputs
from lit_cnn.training.ranks import Ranks
from lit_cnn.training.run_report import FOLDER, write_run_report
from lit_cnn.training.setup import Setup
from lit_cnn.training.trainer import RunTrainer
from lit_cnn.training.training_on import seen_sentences

_MOST_LOGITS = 32_000_000  # of test images, kept for the mean of a run of folds


@dataclass(frozen=True)
class Ending:
    """What a run came to.

    Attributes:
        summary: In a few sentences, one a line; "" if it could not be said.
        report: The page that shows it; None where there is none.
    """

    summary: str = ""
    report: Path | None = None


class Tested(NamedTuple):
    """What the test came to.

    Attributes:
        metrics: As they are logged.
        predictions: What the network says of each test image; None where another process knows it.
        logits: `(m, K)` float32 of all test images, in the order of the split; None unless it is a fold's, and small.
    """

    metrics: dict[str, float]
    predictions: Predictions | None
    logits: np.ndarray | None = None


def evaluate_best(setup: Setup, parts: RunTrainer, ranks: Ranks) -> Tested:
    """Tests a run's best checkpoint."""
    trainer, model, data, best_path = parts.trainer, setup.model, setup.data, parts.checkpoints.best_path
    assert best_path is not None
    loggers = trainer.loggers
    with ranks.ending_together():
        model.load_state_dict(ranks.from_first(lambda: load_checkpoint(best_path)["state_dict"]))
    keeps_logits = bool(data.splits.folds) and len(data.splits.test) * data.num_classes <= _MOST_LOGITS
    outputs = TestOutputs(keeps_logits)
    trainer.callbacks.append(outputs)  # type: ignore[attr-defined]  # set by a connector
    # The test's own logging would give it a step of its own; the run's last step is meant.
    trainer.loggers = []
    (metrics,) = trainer.test(model, data, verbose=False)
    trainer.loggers = loggers
    trainer.callbacks.remove(outputs)  # type: ignore[attr-defined]
    log_now(trainer, metrics)
    for logger in loggers:
        if not isinstance(logger, JournalLogger):
            logger.finalize("success")  # some write only then what they were given
    with ranks.ending_together():
        of_processes = ranks.from_each(outputs.batches)
    predictions = _predictions(setup.name, data, of_processes, trainer.world_size)
    is_whole = sum(map(len, outputs.logits)) == len(data.splits.test)
    return Tested(dict(metrics), predictions, torch.cat(outputs.logits).numpy() if is_whole else None)


def _predictions(
    name: str, data: ImageDataModule, of_processes: list[list[torch.Tensor]], world_size: int
) -> Predictions | None:
    """Returns what the network says of the test images; each process has tested its share, or the beginning of it."""
    if len(of_processes) < world_size or not any(of_processes):
        return None
    found = [torch.cat(batches).numpy() for batches in of_processes if batches]
    shares = [data.splits.test[rank::world_size][: len(own)] for rank, own in enumerate(found)]
    labels, confidence = np.concatenate(found).T
    return Predictions(name, data.image_set, np.concatenate(shares), labels.astype(np.int64), confidence)


def keep_outputs(setup: Setup, parts: RunTrainer, of_test: np.ndarray | None) -> None:
    """Keeps what the best checkpoint of a fold says of that fold, which it was not trained on, with the run.

    A run without folds, on several devices or without a best checkpoint keeps nothing.

    Args:
        setup: What the run is made of.
        parts: Its trainer.
        of_test: Logits of the test images; None where they are not known.
    """
    trainer, model, data, best_path = parts.trainer, setup.model, setup.data, parts.checkpoints.best_path
    if not data.splits.folds or trainer.world_size > 1 or best_path is None or parts.logger is None:
        return
    model.load_state_dict(load_checkpoint(best_path)["state_dict"])
    outputs = TestOutputs(keeps_logits=True)
    before = trainer.loggers, trainer.limit_test_batches
    trainer.callbacks.append(outputs)  # type: ignore[attr-defined]  # set by a connector
    trainer.loggers, trainer.limit_test_batches = [], 1.0
    trainer.test(model, dataloaders=data.val_dataloader(), verbose=False)
    trainer.loggers, trainer.limit_test_batches = before
    trainer.callbacks.remove(outputs)  # type: ignore[attr-defined]
    val, image_set = data.splits.val, data.image_set
    logits, tested = torch.cat(outputs.logits).numpy(), None if of_test is None else softmax(of_test, axis=1)
    kept = Outputs([image_set.paths[index] for index in val], image_set.labels[val], logits, tested)
    write_outputs(best_path.parent / OUT_OF_FOLD / OUTPUTS, kept)
    parts.logger.log_artifact(best_path.parent / OUT_OF_FOLD / OUTPUTS, OUT_OF_FOLD)


def conclude(setup: Setup, parts: RunTrainer, metrics: dict[str, float], predictions: Predictions | None) -> Ending:
    """Says what a run came to, in its description in MLflow too, and makes its report; a failure is only told.

    Args:
        setup: What the run is made of.
        parts: Its trainer.
        metrics: Of the best epoch and the test.
        predictions: Of the test images; None where nothing was tested.
    """
    logger, report = parts.logger, None
    try:
        if logger is None and parts.checkpoints.best_path is None:
            return Ending("Nothing is tracked, so no epoch is kept as the best, and none was tested.")
        facts = _facts(setup, parts, metrics, predictions)
        before = setup.model.run_record.get("splits_before", ())
        said = [*sentences(facts), *seen_sentences(before, setup.data, setup.options.store.splits_dir)]
        if logger is None:
            return Ending("\n".join(said))
        if setup.options.report:
            report = _report(setup, parts, said, predictions, facts, logger)
        where = [f"Report: {FOLDER}/{report.name} among the artifacts."] if report is not None else []
        logger.set_tags({DESCRIPTION: "\n\n".join([escaped_markdown(" ".join(said)), *where])})
        return Ending("\n".join(said), report)
    except Exception as error:
        _warn(f"the end of the run is not described: {' '.join(str(error).split()) or type(error).__name__}")
        return Ending()


def _report(
    setup: Setup,
    parts: RunTrainer,
    said: list[str],
    predictions: Predictions | None,
    facts: Facts,
    logger: JournalLogger,
) -> Path | None:
    try:
        history = read_history(logger.run_folder, parts.trainer.current_epoch)
        folder = logger.run_folder / FOLDER
        best = facts.best_epoch
        files, missing = write_run_report(setup, parts.trainer, said, predictions, history, best, folder)
        for file in files:
            logger.log_artifact(file, FOLDER)
    except Exception as error:  # a full disk, say: the run itself is whole
        _warn(f"no report: {' '.join(str(error).split()) or type(error).__name__}")
        return None
    if missing:
        _warn(f"the report lacks {', '.join(missing)}")
    return files[-1]


def _facts(setup: Setup, parts: RunTrainer, metrics: dict[str, float], predictions: Predictions | None) -> Facts:
    best, trainer, data, options = parts.checkpoints.best, parts.trainer, setup.data, setup.options
    best_epoch = int(best["epoch"]) + 1 if best else None
    limit = trainer.limit_val_batches
    averages = options.ema_decay is not None or (best_epoch or 0) >= (options.swa_start or math.inf)
    kind = "a moving average" if options.ema_decay is not None else "the equal average"
    return Facts(
        class_names=data.class_names,
        counts=confusion_matrix(predictions) if predictions is not None else None,
        train_counts=data.class_counts,
        best_epoch=best_epoch,
        num_epochs=trainer.current_epoch,
        val_share=metrics.get("best/val/acc", math.nan),
        num_val=len(data.splits.val) if limit is None or (isinstance(limit, float) and limit == 1) else None,
        monitor=parts.checkpoints.monitor,
        unit="penalty" if setup.model.solves_head else "epoch",
        is_tied=parts.checkpoints.is_tied,
        averaged=f"{kind} of the weights" if averages else "",
    )


def _warn(text: str) -> None:
    print(f"lit-cnn: warning: {text}", file=sys.stderr)
