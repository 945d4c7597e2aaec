"""A search from its first trial to its report: one run with the trials below it, the best of them trained anew."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.reports.run_words import DESCRIPTION
from lit_cnn.search.crew import Crew
from lit_cnn.search.desk import KNOWN_BY, SearchDesk
from lit_cnn.search.measure import judging_digest, num_judging
from lit_cnn.search.parent import note_finished, open_parent, was_finished
from lit_cnn.search.result import SearchResult
from lit_cnn.search.space import Space, Values
from lit_cnn.search.storage import database_errors, not_answering
from lit_cnn.search.study import Plan, Study, Trial, has_study
from lit_cnn.tracking.children import settle_children
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.progress import MlflowRun
from lit_cnn.tracking.supervisor import supervisor_of
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.parents import summarize
from lit_cnn.training.process import RunFailedError
from lit_cnn.training.resume import mark_finished
from lit_cnn.training.setup import Setup
from lit_cnn.training.training_on import warn_of_seen

BEST = "best.yaml"
_UNTIL_OPEN = 60.0  # seconds


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        space: What differs between the trials.
        plan: How it is searched.
        arguments: Options of `lit-cnn fit` that all trials have.
        config: The same, in sections of plain values.
        setup: Of one of the trials.
        config_of: Returns the configuration of a trial, as a file for `--config` has it.
        budget: Seconds for all of it; None for any.
        final_seeds: Training seeds for the best trial.
        resume: Whether to go on with an unfinished search.
        study_url: A database for the study; default: a file in the folder of the search's run.
        output: The folder for the report.
    """

    space: Space
    plan: Plan
    arguments: Sequence[str]
    config: Mapping[str, Any]
    setup: Setup
    config_of: Callable[[Values], dict[str, Any]]
    budget: float | None = None
    final_seeds: Sequence[int] = (1, 2, 3)
    resume: bool = False
    study_url: str | None = None
    output: Path = Path("search")


def run_search(search: Search, crew: Crew, say: Callable[[str], None]) -> SearchResult:
    """Trains all trials, and the best of them anew; returns what they came to.

    Args:
        search: What is searched.
        crew: The workers.
        say: Prints a line of progress.

    Raises:
        UsageError: If the study or the unfinished run is of another search; nothing is trained then.
        RunFailedError: If no trial can be trained.
        RunInterrupted: If a signal stopped it; it can be resumed.
    """
    logger, digest = open_parent(search.setup, search.config, search.space, search.plan, search.resume, say)
    status, study = "FAILED", None
    try:
        before, store = search.setup.model.weights_trained_on, search.setup.options.store
        logger.set_tags(
            warn_of_seen(before, search.setup.data, store.splits_dir, "the run whose weights it starts from")
        )
        study = Study(logger.run_folder, digest, search.space, search.plan, search.study_url)
        _say_start(search, study, crew.engine.num_workers, say)

        def note(trial: Trial, best: Trial | None) -> None:
            """Logs a trial, and the best so far, with the search's run."""
            values = {"search/value": trial.outcome.value, "search/best": best.outcome.value if best else None}
            logger.log_metrics({name: value for name, value in values.items() if value is not None}, trial.number)

        desk = SearchDesk(
            study,
            search.arguments,
            logger.key,
            search.setup.options.monitor,
            judging_digest(search.setup.data),
            crew.engine.num_workers,
            search.budget,
            search.final_seeds,
            say,
            note,
        )
        if crew.engine.sends_elsewhere:
            _wait_for_parent(logger)
        crew.serve(desk, logger.run_folder, logger.check_sender)
        result = _result(search, study, desk, logger, crew.engine.sends_elsewhere)
        _keep(search, result, logger)
        status = "FINISHED"
    except (RunInterrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    except UsageError:
        if study is None:  # nothing was trained
            status = "FINISHED" if was_finished(logger.run_folder) else status
            if status == "FINISHED" or not has_study(logger.run_folder):
                mark_finished(logger.run_folder)
        raise
    except database_errors() as error:
        raise RunFailedError(not_answering(error)) from error
    finally:
        if status == "FINISHED" and study is not None:
            num_ended = sum(trial.outcome.state != "running" for trial in study.trials())
            note_finished(logger.run_folder, digest, num_ended)
        logger.end(status)
        logger.wait_until_sent(timeout=60 if status == "FINISHED" else 5)
    return result


def _say_start(search: Search, study: Study, num_workers: int, say: Callable[[str], None]) -> None:
    plan, done = search.plan, [trial for trial in study.trials() if trial.outcome.state != "running"]
    for line in search.space.in_words():
        say(f"  {line}")
    by = "TPE" if plan.sampler == "tpe" else "chance"
    how = "every combination" if study.is_grid else f"drawn by {by}"
    pruned = f", pruned by {plan.pruner}" if plan.pruner != "none" else ""
    at_once = f", {num_workers} at once" if num_workers > 1 else ""
    folds = f" of {plan.num_folds} folds" if plan.num_folds else ""
    epochs = f"{folds} of up to {counted(plan.max_epochs, 'epoch')}"
    say(f"{counted(study.limit, 'trial')}{epochs}, {how}{pruned}{at_once}")
    if done:
        say(f"going on after {len(done)} of them")


def _wait_for_parent(logger: JournalLogger) -> None:
    """Waits until MLflow has the search's run, below which other machines send theirs.

    Raises:
        RunFailedError: If it has not within a minute.
    """
    began = time.monotonic()
    while logger.run_id is None:
        logger.check_sender()
        if time.monotonic() - began > _UNTIL_OPEN:
            raise RunFailedError(f"{logger.store.label} takes nothing, and runs of other nodes belong below the search")
        time.sleep(0.1)


def _result(search: Search, study: Study, desk: SearchDesk, logger: JournalLogger, has_others: bool) -> SearchResult:
    data, journals = search.setup.data, logger.store.journal_dir
    supervisor = supervisor_of(logger.store)
    trials = study.trials()
    of_all = [*(trial.outcome.run for trial in trials), *(final.run for final in desk.finals.values())]
    runs = [key for keys in of_all for key in keys.split()]
    for key in runs:
        if (journals / key).is_dir():  # else on another machine
            supervisor.add(journals / key)
    logger.wait_until_sent(timeout=60)
    known = {key: found.run_id for key in runs if (found := MlflowRun.read(journals / key))}
    if (has_others or any(not (journals / key).is_dir() for key in runs)) and logger.run_id:
        try:
            known |= settle_children(logger.store, logger.experiment_name, logger.run_id, set(runs), KNOWN_BY)
        except UsageError as error:
            desk.say(f"runs of other machines are shown by their keys: {error}")
    return SearchResult(
        trials=tuple(trials),
        finals=tuple(desk.finals[seed] for seed in sorted(desk.finals)),
        lines=tuple(search.space.in_words()),
        monitor=search.setup.options.monitor,
        mode=search.plan.mode,
        num_val=num_judging(data, desk.measure),
        num_test=len(data.splits.test),
        seed=int(search.config["seed_everything"]),
        subject=data.image_set.name,
        runs={key: known.get(key, key) for key in runs},
        run=logger.run_id or logger.key,
        importance=study.importance(),
        output=search.output,
        num_folds=search.plan.num_folds,
    )


def _keep(search: Search, result: SearchResult, logger: JournalLogger) -> None:
    """Writes the report and the best configuration, and keeps both with the run."""
    config = search.config_of(result.best.values)
    folds = f"--folds {result.num_folds} " if result.num_folds else ""
    how = f"lit-cnn fit {folds}--config {search.output / BEST}"
    comment = f"# The best of {len(result.trials)} trials on {result.subject}: {how}\n"
    try:
        files = result.write(search.output)
        (search.output / BEST).write_text(comment + yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    except OSError as error:
        reason, remedy = f"cannot be written ({error.strerror})", "give another folder, and `resume=auto`: all is kept"
        raise UsageError("output", search.output, reason, remedy) from error
    for file in [*files, search.output / BEST]:
        logger.log_artifact(file, "search")
    results = [final.metrics for final in result.finals if final.metrics]
    if results:
        logger.log_metrics({"seeds": len(results), **summarize(results)}, step=len(result.trials))
    members = " ".join(result.runs[key] for final in result.finals for key in final.run.split())
    logger.set_tags({"members": members, DESCRIPTION: result.answer()})
