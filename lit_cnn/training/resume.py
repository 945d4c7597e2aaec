"""Which checkpoint a command means: a file, `runs:/ID`, or the last one of the unfinished run like it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.run_params import OF_THE_PLACE
from lit_cnn.data.stored_options import ADDED, MEANT_BEFORE, as_decided
from lit_cnn.tracking.journal import read_header, read_owner
from lit_cnn.tracking.run import run_in
from lit_cnn.tracking.store import LAST, UNFINISHED, Store

# What else may differ between a run and the one that goes on with it: for how long.
_MAY_CHANGE = {"trainer": frozenset({"max_epochs", "max_time", "callbacks"})}


@dataclass(frozen=True)
class Unfinished:
    """A run that has not come to its end.

    Attributes:
        folder: Its journal's folder, with `last.ckpt`.
        run_name: What it is called.
        modified: When it last wrote a checkpoint, seconds since 1970.
        config_digest: See `config_digest`.
        digests: Of its images and their split, as `ImageDataModule.digests`; empty for a run of 0.2.
        experiment: Name of its experiment.
    """

    folder: Path
    run_name: str
    modified: float
    config_digest: str
    digests: Mapping[str, str]
    experiment: str

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to go on from."""
        return self.folder / LAST


def config_digest(config: Mapping[str, Any], data_digest: str) -> str:
    """Returns the SHA-256 of what decides a run's weights, however long it trains: seed, model, data and trainer.

    Of a run with children, also of what they are.

    Args:
        config: The resolved configuration: sections of plain values.
        data_digest: Digest of the images, which stands in for their folder.
    """
    kept: dict[str, Any] = {"seed_everything": config["seed_everything"], "data_digest": data_digest}
    if "children" in config:
        kept["children"] = config["children"]
    for section in ("model", "data", "trainer"):
        left_out = OF_THE_PLACE[section] | _MAY_CHANGE.get(section, frozenset())
        kept[section] = {name: value for name, value in config[section].items() if name not in left_out}
    # What does as versions did that had no such option has their digest.
    as_before = {**MEANT_BEFORE, **dict.fromkeys(ADDED)}
    data = as_decided(kept["data"])
    kept["data"] = {name: value for name, value in data.items() if (name, value) not in as_before.items()}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()


def mark_unfinished(folder: Path, digest: str, run_name: str, digests: Mapping[str, str] | None = None) -> None:
    """Notes in a run's folder that it can be gone on with, by whoever has the same configuration.

    Args:
        folder: The run's.
        digest: See `config_digest`.
        run_name: What it is called.
        digests: See `Unfinished`.
    """
    note = {"config_digest": digest, "run_name": run_name, "digests": dict(digests or {})}
    write_text_atomically(folder / UNFINISHED, json.dumps(note))


def mark_finished(folder: Path) -> None:
    """Takes the note of `mark_unfinished` away."""
    (folder / UNFINISHED).unlink(missing_ok=True)


def unfinished_runs(
    store: Store, experiment: str | None, digest: str | None, needs_checkpoint: bool = True
) -> list[Unfinished]:
    """Returns the runs of this configuration that ended early, the newest first.

    Args:
        store: Where runs are kept.
        experiment: Name of theirs; None for those of any.
        digest: See `config_digest`; None for those of any configuration.
        needs_checkpoint: Leave out runs that have no `last.ckpt`.
    """
    found = []
    for marker in store.journal_dir.glob(f"*/{UNFINISHED}"):
        try:
            note = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UsageError("resume", None, f"{marker} is no JSON ({error})", "remove it") from error
        newest = marker.parent / LAST if needs_checkpoint else marker
        if digest not in (None, note["config_digest"]) or not newest.exists() or read_owner(marker.parent) is not None:
            continue
        header = read_header(marker.parent)
        if header is not None and experiment in (None, header.experiment):
            begun = (note["run_name"], newest.stat().st_mtime, note["config_digest"], note.get("digests", {}))
            found.append(Unfinished(marker.parent, *begun, header.experiment))
    return sorted(found, key=lambda run: -run.modified)


def last_checkpoint(store: Store, experiment: str, digest: str) -> Path | None:
    """Returns `last.ckpt` of the one unfinished run of this configuration; None if there is none.

    Args:
        store: Where runs are kept.
        experiment: Name of its experiment.
        digest: See `config_digest`.

    Raises:
        UsageError: If there are several, with their list.
    """
    runs = unfinished_runs(store, experiment, digest)
    if len(runs) > 1:
        listed = "; ".join(f"{run.run_name} {run.checkpoint}" for run in runs)
        reason = f"{len(runs)} unfinished runs have this configuration"
        raise UsageError(None, None, reason, f"give `ckpt_path` one of: {listed}")
    return runs[0].checkpoint if runs else None


def checkpoint_file(text: str, store: Store) -> Path:
    """Returns the file of a checkpoint given as a path, a run's id or `runs:/ID`; see `checkpoint_of_run`.

    Raises:
        UsageError: If there is no such file or run.
    """
    if (name := run_in(text)) is not None:
        from lit_cnn.training.weights import checkpoint_of_run

        return checkpoint_of_run(store, name)
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError("ckpt_path", text, "no such file", "give a checkpoint's file, a run's id, or last")
    return path


def checkpoint_to_train_on(text: str, store: Store) -> Path:
    """Returns the file of a checkpoint to train on from: of `runs:/ID` its last one, here or in the store.

    Raises:
        UsageError: If there is no such file or run, or it is of weights alone.
    """
    name = run_in(text)
    if name is None:
        return checkpoint_file(text, store)
    from lit_cnn.tracking import queries

    if "/" in name:
        raise weights_alone(text)
    (run,) = queries.find_runs(store, [name])
    kept = store.journal_dir / run.tags.get("lit_cnn.key", "-") / LAST
    return kept if kept.is_file() else queries.download_artifact(store, run, f"checkpoints/{LAST}")


def weights_alone(given: Any) -> UsageError:
    """Returns the mistake of training on from a file that has no state of an optimizer."""
    reason = f"is of weights alone; {LAST} of a run, or runs:/RUN_ID, has the optimizer's state and the place too"
    return UsageError("ckpt_path", given, reason, f"give that, or start anew from these weights: `weights={given}`")
