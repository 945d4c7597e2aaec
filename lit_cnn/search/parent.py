"""The run of a search, below which its trials are shown: opened once, and gone on with after whatever ended it."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.words import counted
from lit_cnn.search.space import Space
from lit_cnn.search.study import Plan, most_trials
from lit_cnn.tracking.journal import read_header, read_owner
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.store import UNFINISHED
from lit_cnn.training.process import RunFailedError
from lit_cnn.training.record import class_names_tag, flatten, git_state
from lit_cnn.training.resume import config_digest, mark_finished, mark_unfinished
from lit_cnn.training.setup import Setup

KIND = "search"
_SEARCH, _FINISHED, WORKERS_LOCK = "search.json", "finished.json", "workers.lock"
_UNTIL_GONE = 120.0  # seconds that workers of an earlier process are given to end


def open_parent(
    setup: Setup,
    config: Mapping[str, Any],
    space: Space,
    plan: Plan,
    resume: bool,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[JournalLogger, str]:
    """Opens the run of a search, or goes on with the unfinished one, or with a finished one of fewer trials.

    Args:
        setup: Of one of its trials.
        config: What all trials have, in sections of plain values.
        space: What differs between them.
        plan: How it is searched.
        resume: Whether to go on with an unfinished search, if there is one.
        say: Prints what was found that is finished.

    Returns:
        What the run logs with, and the digest of the search.

    Raises:
        UsageError: If the unfinished search is another one, still runs, or several could be meant.
    """
    logger = setup.new_logger()
    assert logger is not None
    options = _options(config, space, plan)
    images, limit = setup.data.digests["data"], most_trials(space, plan)
    digest = config_digest({**config, "children": sorted(options.items())}, images)
    folder = None
    if resume:
        folder = _find(logger, digest, {**options, "images": images[:8]}, lambda: _finished(logger, digest, limit, say))
    name = f"{KIND}_{setup.data.image_set.name}"
    logger.begin(run_name=name, params=options, tags=_tags(setup, config, digest), resume_folder=folder)
    mark_unfinished(logger.run_folder, digest, name, setup.data.digests)
    write_text_atomically(logger.run_folder / _SEARCH, json.dumps({**options, "images": images[:8]}))
    wait_for_workers(logger.run_folder / WORKERS_LOCK)
    return logger, digest


def note_finished(folder: Path, digest: str, num_trials: int) -> None:
    """Notes in a search's folder that it has come to its end, so that more trials can go on with it."""
    write_text_atomically(folder / _FINISHED, json.dumps({"config_digest": digest, "trials": num_trials}))
    mark_finished(folder)


def was_finished(folder: Path) -> bool:
    """Whether a search had come to its end before it was gone on with."""
    return (folder / _FINISHED).exists()


def lock_worker(place: Path) -> None:
    """Notes for as long as this process lives that a worker of the search in this folder is at work."""
    descriptor = os.open(place / WORKERS_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_SH)


def _options(config: Mapping[str, Any], space: Space, plan: Plan) -> dict[str, str]:
    """Returns what makes a search another one; how many trials, and where and how long, does not."""
    flat = {name: str(value) for name, value in flatten(dict(config)).items()}
    searched = {
        f"search.{each.label}".replace("(", "").replace(")", ""): each.domain.in_words()
        for each in space.all_dimensions()
    }
    how = {"search.sampler": plan.sampler, "search.pruner": plan.pruner, "search.seed": str(plan.seed)}
    how |= {"search.folds": str(plan.num_folds)} if plan.num_folds else {}
    chosen = {each.option for each in space.all_dimensions()}
    return {**{name: value for name, value in flat.items() if name not in chosen}, **searched, **how}


def _finished(logger: JournalLogger, digest: str, limit: int, say: Callable[[str], None]) -> Path | None:
    """Returns the folder of the newest finished search with this digest if it has fewer trials, and says so."""
    found = []
    for file in logger.store.journal_dir.glob(f"*/{_FINISHED}"):
        note, header = json.loads(file.read_text(encoding="utf-8")), read_header(file.parent)
        if header is None or header.experiment != logger.experiment_name or read_owner(file.parent) is not None:
            continue
        if note["config_digest"] == digest:
            found.append((file.stat().st_mtime, file.parent, note["trials"]))
    if not found:
        return None
    _, folder, trials = max(found)
    if trials < limit:
        say(f"going on with the finished search of {counted(trials, 'trial')} in {folder}")
        return folder
    say(
        as_printed(
            f"this search is finished, with {counted(trials, 'trial')}, in {folder}: more `trials` go on with it"
        )
    )
    say("as many or fewer start anew")
    return None


def _find(
    logger: JournalLogger, digest: str, options: Mapping[str, str], finished: Callable[[], Path | None]
) -> Path | None:
    """Returns the folder of the unfinished search with this digest, else of a finished one; refuses another one."""
    found, others = list[Path](), list[Path]()
    for file in sorted(logger.store.journal_dir.glob(f"*/{_SEARCH}")):
        folder, header = file.parent, read_header(file.parent)
        if header is None or header.experiment != logger.experiment_name or not (folder / UNFINISHED).exists():
            continue
        note = json.loads((folder / UNFINISHED).read_text(encoding="utf-8"))
        (found if note["config_digest"] == digest else others).append(folder)
    running = next((folder for folder in found if read_owner(folder) is not None), None)
    if running is not None:
        raise UsageError("resume", "auto", f"this search still runs in another process ({running})", "end that first")
    if len(found) > 1:
        listed = ", ".join(map(str, found))
        raise UsageError("resume", "auto", f"{len(found)} unfinished searches: {listed}", "delete all but one")
    if found:
        return found[0]
    if (of_finished := finished()) is not None or not others:
        return of_finished
    before = json.loads((others[-1] / _SEARCH).read_text(encoding="utf-8"))
    names = [name for name in {**before, **options} if before.get(name) != options.get(name)]
    first = names[0] if names else "a library's version"
    reason = f"the unfinished search in {others[-1]} is another one: its {first.removeprefix('search.')} is "
    reason += f"{before.get(first, 'not there')}, here it is {options.get(first, 'not there')}"
    raise UsageError("resume", "auto", reason, "give what that had, or leave `resume` out to start anew")


def _tags(setup: Setup, config: Mapping[str, Any], digest: str) -> dict[str, str]:
    commit, dirty = git_state()
    digests = setup.data.digests
    return {
        "kind": KIND,
        "label": f"search on {setup.data.image_set.name}",
        "data": setup.data.image_set.name,
        "arch": str(config["model"]["arch"]),
        "seed": str(config["seed_everything"]),
        "config_digest": digest,
        "data_digest": digests["data"],
        "split_digest": digests["split"],
        "class_names": class_names_tag(setup.data.class_names),
        "git_commit": commit,
        "git_dirty": dirty,
        "lit_cnn_version": __version__,
    }


def wait_for_workers(file: Path) -> None:
    """Waits until the workers of a process that was killed have ended: they hear of it, and write a checkpoint."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    began, has_said = time.monotonic(), False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                waited = time.monotonic() - began
            if waited > _UNTIL_GONE:
                raise RunFailedError(f"workers of this search still run; {file} is theirs: end them first")
            if waited > 2 and not has_said:
                has_said = True
                print("waiting for the workers of the search that was stopped", file=sys.stderr)
            time.sleep(0.05)
    finally:
        os.close(descriptor)
