"""A run with children: several seeds, the trials of advise; it keeps what its children came to, and can be resumed."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.labels import label_of
from lit_cnn.core.words import counted
from lit_cnn.reports.run_words import DESCRIPTION, seed_sentences
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.run import Run
from lit_cnn.tracking.store import Store
from lit_cnn.training.resume import config_digest, mark_finished, mark_unfinished, unfinished_runs

_RESULTS = "results.json"


@dataclass(frozen=True)
class Conclusion:
    """What the children of a run come to together, besides the mean of their metrics.

    Attributes:
        metrics: Of all together.
        summary: In a few sentences, one a line.
        report: The page that shows it; None where there is none.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: str = ""
    report: Path | None = None


@dataclass
class ParentRun:
    """The run under which others are shown; opened when the first child's configuration has been found good.

    Args:
        kind: `seeds`, `folds` or `advice`: the tag by which it is found.
        resume: Whether to go on with an unfinished parent of the same configuration, if there is one.
        differs: What the configuration of the parent has in place of a child's own: `seed_everything`, say; of the data
            only the options that differ.
        tags: What its tags have in place of a child's own.
        name_of: From a child's name to its own.
        conclude: Logs what the children come to together, when all are done; may return it.
        child_tags: Tags of each child besides its own: `trial` for those that are no result.
        label_of: From the params that all children have to the run's label.
        say: Says what the children come to together, given the metrics of each by its label.
        key: That of a run which another process has opened; see `opened_elsewhere`.
        begun: The folder of the child that goes on; see `opened_elsewhere`.

    Attributes:
        data_options: Options of the data that all children have, whatever they are given: those of the version that
            began the run.
        children: Label, such as the seed, -> the child's run, in the order in which they ended.
        logger: What the run logs with; None before it is opened, and where nothing is tracked.
    """

    kind: str
    resume: bool
    differs: Mapping[str, Any]
    tags: Mapping[str, str]
    name_of: Callable[[str], str]
    conclude: Callable[["ParentRun"], Conclusion | None]
    child_tags: Mapping[str, str] = field(default_factory=dict)
    label_of: Callable[[Mapping[str, Any]], str] = lambda params: "advice"
    say: Callable[[Mapping[str, Mapping[str, float]]], Sequence[str]] = lambda results: ()
    key: str | None = None
    begun: Path | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Run] = field(default_factory=dict)
    logger: JournalLogger | None = None

    def sends_children(self, journal_dir: Path) -> bool:
        """Returns whether the process that has opened the run sends what is below it: it sees the same folder.

        Args:
            journal_dir: Where the children are kept.
        """
        return self.key is not None and (journal_dir / self.key).is_dir()

    def config_of(self, child: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the configuration of the run, from that of a child."""
        data = {**child["data"], **self.differs.get("data", {}), **self.data_options}
        return {**child, **self.differs, "data": data}

    def digest_of(self, child: Mapping[str, Any], data_digest: str) -> str:
        """Returns the digest of the run's configuration; see `config_digest`."""
        return config_digest(self.config_of(child), data_digest)

    def find_begun(
        self, child: Mapping[str, Any], before: Mapping[str, Any], data_digest: str, store: Store, experiment: str
    ) -> bool:
        """Takes over the options of the data with which an earlier version began this run, if it is to be resumed.

        Returns whether there is a run to resume, of this version or an earlier one, or no such run is asked for.

        Args:
            child: Configuration of a child.
            before: What an earlier version meant by the options that it did not have.
            data_digest: Digest of the images.
            store: Where runs are kept.
            experiment: Name of the run's.
        """
        if self.logger is not None or not self.resume:
            return True
        if unfinished_runs(store, experiment, self.digest_of(child, data_digest), needs_checkpoint=False):
            return True
        older = replace(self, data_options=dict(before))
        if unfinished_runs(store, experiment, older.digest_of(child, data_digest), needs_checkpoint=False):
            self.data_options = dict(before)
            return True
        return False

    def open(self, logger: JournalLogger, digest: str, run_name: str, digests: Mapping[str, str], **begin: Any) -> str:
        """Opens the run once, or goes on with the unfinished one; returns its key.

        Args:
            logger: What the run logs with, not yet begun; kept at the first call.
            digest: Digest of the configuration and all children.
            run_name: The run's name.
            digests: Of the images and their split.
            **begin: More arguments of `JournalLogger.begin`.

        Raises:
            UsageError: If several unfinished runs could be meant.
        """
        if self.logger is not None:
            return self.logger.key
        found = (
            unfinished_runs(logger.store, logger.experiment_name, digest, needs_checkpoint=False) if self.resume else []
        )
        if len(found) > 1:
            listed = ", ".join(str(run.folder) for run in found)
            raise UsageError(
                "resume", "auto", f"{len(found)} unfinished runs over these children: {listed}", "delete all but one"
            )
        folder = found[0].folder if found else None
        if folder is not None:
            self.children = _read_children(folder / _RESULTS)
        logger.begin(run_name=run_name, **begin, resume_folder=folder)
        mark_unfinished(logger.run_folder, digest, run_name, digests)
        self.logger = logger
        return logger.key

    def add(self, label: str, child: Run) -> None:
        """Keeps what a child came to, on disk too."""
        self.children[label] = child
        if self.logger is not None:
            kept = {label: _plain(run) for label, run in self.children.items()}
            write_text_atomically(self.logger.run_folder / _RESULTS, json.dumps(kept))

    def end(self, status: str) -> Run:
        """Closes the run and returns it, with the mean of its children's metrics.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        children = tuple(self.children.values())
        metrics = summarize([child.metrics for child in children]) if children else {}
        said = "\n".join(self.say({label: child.metrics for label, child in self.children.items()})) if children else ""
        if self.logger is None:
            return Run("", self.kind, metrics, children=children, summary=said)
        concluded = Conclusion(summary=said)
        if status == "FINISHED":
            concluded = self.conclude(self) or concluded
            mark_finished(self.logger.run_folder)
        self.logger.end(status)
        is_sent = self.logger.wait_until_sent(timeout=60)
        name = self.logger.run_name or self.kind
        run = Run(self.logger.run_id or self.logger.key, name, {**metrics, **concluded.metrics}, children=children)
        return replace(run, is_sent=is_sent, summary=concluded.summary, report=concluded.report)


def opened_elsewhere(key: str, child_tags: Mapping[str, str], begun: Path | None = None) -> ParentRun:
    """Returns the parent of a run that is one of a search: another process has opened it, and sends its children too.

    Args:
        key: The parent's key.
        child_tags: Tags of the child besides its own.
        begun: The child's folder, where a process that is gone has begun it: it goes on there, from its checkpoint or,
            where there is none yet, from its first step.
    """

    def conclude(parent: ParentRun) -> None:
        """Does nothing: it is for who has opened it to end it."""

    own = {"differs": {}, "tags": {}, "name_of": str, "conclude": conclude}
    return ParentRun("search", False, **own, child_tags=child_tags, key=key, begun=begun)  # type: ignore[arg-type]


def of_seeds(seeds: Sequence[int], resume: bool) -> ParentRun:
    """Returns the parent of one run a seed; it logs their mean and standard deviation.

    Args:
        seeds: The training seeds.
        resume: See `ParentRun`.

    Raises:
        UsageError: If there is none, or one is given twice.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError("seeds", seeds, "give one or more different whole numbers, such as [0, 1, 2]")
    return ParentRun(
        "seeds",
        resume,
        differs={"seed_everything": list(seeds)},
        tags={"seed": " ".join(map(str, seeds))},
        name_of=lambda name: f"{name} ({len(seeds)} seeds)",
        conclude=_log_summary,
        label_of=lambda params: f"{label_of(params)} · {counted(len(seeds), 'seed')}",
        say=seed_sentences,
    )


def _log_summary(parent: ParentRun) -> None:
    assert parent.logger is not None
    results = {seed: child.metrics for seed, child in parent.children.items()}
    summary = summarize(list(results.values()))
    parent.logger.log_metrics({"seeds": len(results), **summary}, step=0)
    spread = {split: summary.get(f"{metric}_std") for split, metric in (("val", "best/val/acc"), ("test", "test/acc"))}
    in_words = {split: f"± {std:.3f}, {len(results)} seeds" for split, std in spread.items() if std is not None}
    tags = {f"{split}_interval": text for split, text in in_words.items()}
    parent.logger.set_tags({DESCRIPTION: " ".join(seed_sentences(results)), **tags})


def summarize(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Returns each metric's mean under its own name and, with two or more results, its standard deviation.

    That is `NAME_std`, the standard deviation of a sample (n - 1).
    """
    summary: dict[str, float] = {}
    for name in results[0]:
        values = np.array([result[name] for result in results if name in result])
        summary[name] = float(values.mean())
        if len(values) > 1:
            summary[f"{name}_std"] = float(values.std(ddof=1))
    return summary


def _plain(run: Run) -> dict[str, Any]:
    checkpoint = str(run.checkpoint) if run.checkpoint else None
    return {
        "id": run.id,
        "name": run.name,
        "metrics": dict(run.metrics),
        "checkpoint": checkpoint,
        "seconds": run.seconds,
        "summary": run.summary,
        "report": str(run.report) if run.report else None,
    }


def _read_children(file: Path) -> dict[str, Run]:
    if not file.exists():
        return {}
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError("resume", "auto", f"{file} is no JSON ({error})", "remove it") from error
    # 0.1 kept the metrics alone.
    whole = {
        label: kept if "metrics" in kept else {"id": "", "name": "", "metrics": kept} for label, kept in saved.items()
    }
    files = ("checkpoint", "report")
    return {
        label: Run(**{**kept, **{name: Path(kept[name]) if kept.get(name) else None for name in files}})
        for label, kept in whole.items()
    }
