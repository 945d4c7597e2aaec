"""`lit-cnn fit --seeds 0 1 2`: one run per seed under a parent run that holds their mean and standard deviation."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.words import counted
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.resume import mark_finished, mark_unfinished, unfinished_runs

_RESULTS = "results.json"


class SeedsRun:
    """The parent run of several seeds; it is opened when the first child's configuration has been found good.

    Args:
        seeds: The training seeds.
        resume: Whether to go on with an unfinished parent run of the same configuration and seeds, if there is one.
    """

    def __init__(self, seeds: Sequence[int], resume: bool) -> None:
        self.seeds = seeds
        self.resume = resume
        self.results: dict[int, dict[str, float]] = {}
        self.logger: JournalLogger | None = None

    def open(self, logger: JournalLogger, digest: str, begin: dict[str, Any]) -> str:
        """Opens the run once, or goes on with the unfinished one; returns its key.

        Args:
            logger: What the run logs with, not yet begun; kept at the first call.
            digest: Digest of the configuration and all seeds.
            begin: Arguments of `JournalLogger.begin`.

        Raises:
            UsageError: If several unfinished parent runs could be meant.
        """
        if self.logger is None:
            found = unfinished_runs(logger.store, digest, needs_checkpoint=False) if self.resume else []
            if len(found) > 1:
                listed = ", ".join(str(run.folder) for run in found)
                raise UsageError(
                    f"--resume auto: {len(found)} unfinished runs over these seeds: {listed}; delete all but one"
                )
            if found and (found[0].folder / _RESULTS).exists():
                file = found[0].folder / _RESULTS
                try:
                    saved = json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise UsageError(f"--resume auto: {file} is no JSON ({error}); remove it") from error
                self.results = {int(seed): result for seed, result in saved.items()}
            self.logger = logger
            self.logger.begin(**begin, resume_folder=found[0].folder if found else None)
            mark_unfinished(self.logger.run_folder, digest, begin["run_name"])
        return self.logger.key

    def add(self, seed: int, result: dict[str, float]) -> None:
        """Keeps what a seed's run came to, on disk too."""
        self.results[seed] = result
        if self.logger is not None:
            write_text_atomically(self.logger.run_folder / _RESULTS, json.dumps(self.results))

    def end(self, status: str) -> None:
        """Logs mean and standard deviation over the seeds and closes the run.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        if self.logger is None:
            return
        if status == "FINISHED":
            self.logger.log_metrics(summarize(list(self.results.values())), step=0)
            mark_finished(self.logger.run_folder)
        self.logger.end(status)


def summarize(results: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns each metric's mean under its own name and, with two or more results, its deviation as `NAME_std`.

    The deviation is that of a sample (n - 1).
    """
    summary: dict[str, float] = {"seeds": float(len(results))}
    for name in results[0]:
        values = np.array([result[name] for result in results])
        summary[name] = float(values.mean())
        if len(values) > 1:
            summary[f"{name}_std"] = float(values.std(ddof=1))
    return summary


def format_summary(results: dict[int, dict[str, float]]) -> str:
    """Returns one line: the accuracies' mean and standard deviation over the seeds."""
    summary = summarize(list(results.values()))
    parts = [
        f"{name} {summary[name]:.4f} +- {summary[f'{name}_std']:.4f}"
        for name in ("best/val/acc", "test/acc")
        if f"{name}_std" in summary
    ]
    return f"{counted(len(results), 'seed')} (mean +- std): {'  '.join(parts)}"
