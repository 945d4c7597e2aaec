"""Where a run starts: at its first step, or where the run that it goes on with stands, on the same split."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.callbacks import Timer

from lit_cnn.core.errors import UsageError
from lit_cnn.data.changes import changes
from lit_cnn.data.stored_options import MEANT_BEFORE, completed
from lit_cnn.tracking.delivery import MlflowRun
from lit_cnn.tracking.store import LAST, UNFINISHED, Store
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.parents import ParentRun
from lit_cnn.training.ranks import Ranks
from lit_cnn.training.resume import (
    checkpoint_to_train_on,
    config_digest,
    last_checkpoint,
    unfinished_runs,
    weights_alone,
)
from lit_cnn.training.setup import Setup
from lit_cnn.training.training_on import batches_of, epochs_done, steps_done


@dataclass(frozen=True)
class Start:
    """Where a run starts: from its first step, or from a checkpoint.

    Attributes:
        path: The checkpoint's file; None for the first step.
        checkpoint: What is in it.
        folder: That of the run that goes on, if it has not come to its end and is the same work. None for a run of its
            own: a finished run stays as it is. A run may go on from its first step, if it has no checkpoint yet.
    """

    path: Path | None
    checkpoint: dict[str, Any]
    folder: Path | None = None

    @property
    def record(self) -> dict[str, Any]:
        """What the checkpoint says of its run."""
        return self.checkpoint.get("lit_cnn", {})

    def id_in(self, store: Store) -> str:
        """Returns by what a store knows the checkpoint's run: MLflow's id, else our key, else the file."""
        key = self.record.get("key")
        known = MlflowRun.read(store.journal_dir / key) if key else None
        return known.run_id if known else str(key or self.path)


def find_start(setup: Setup, parent: ParentRun | None = None, ranks: Ranks | None = None) -> tuple[Setup, Start]:
    """Returns where the run starts; the processes of a distributed run start where the first one does.

    A run of an earlier version is gone on with on its own split: what data options did before there were such options
    is then part of the setup, unless the user chose otherwise.

    Args:
        setup: What the run is made of.
        parent: The run under which it is shown. All its children have the same split.
        ranks: The processes of the run, of which the first one says where; by default there is one.

    Returns:
        The setup, and where it starts.

    Raises:
        UsageError: If the checkpoint is not there, or it is not clear which is meant.
    """
    before = _before(setup)
    if parent is not None:
        if not parent.find_begun(
            setup.config, before, setup.data.digests["data"], setup.options.store, setup.experiment
        ):
            _tell_of_others(setup, parent.config_of(setup.config), before, needs_checkpoint=False)
        setup, before = setup.with_data_options(parent.data_options), {}
    ranks = ranks or Ranks()
    if parent is not None and parent.begun is not None:
        last = parent.begun / LAST
        path = last if last.exists() else None
        return setup, Start(path, load_checkpoint(path) if path else {}, parent.begun)
    path = ranks.file_of_first(lambda: _choose_checkpoint(setup, before))
    if ranks.is_first and path is None and parent is None and setup.options.resume == "auto":
        _tell_of_others(setup, setup.config, before)
    start = Start(path, load_checkpoint(path) if path else {})
    if path is not None and "optimizer_states" not in start.checkpoint:
        raise weights_alone(setup.options.ckpt_path)
    own = {name: value for name, value in before.items() if _stored_options(start).get(name) == value}
    if own and ranks.is_first:
        words = ", ".join(f"{name} {value}" for name, value in own.items())
        print(f"going on as lit_cnn {start.record.get('lit_cnn')} began, with {words}", file=sys.stderr)
    setup = setup.with_data_options(own)
    folder = setup.options.store.journal_dir / start.record.get("key", "-")
    is_same = start.record.get("config_digest") == setup.digest
    # Asked of the first process: another host need not see the folder.
    goes_on = ranks.from_first(lambda: is_same and (folder / UNFINISHED).exists())
    return setup, replace(start, folder=folder if goes_on else None)


def _before(setup: Setup) -> dict[str, Any]:
    """Returns the options of the data that earlier versions did not have, as they meant them; none that were chosen."""
    return {name: value for name, value in MEANT_BEFORE.items() if setup.data.is_default(name)}


def _stored_options(start: Start) -> dict[str, Any]:
    """Returns the options of the data of the run that is gone on with; none where its checkpoint has none."""
    if (config := start.record.get("config")) is None:
        return {}
    try:
        return completed(yaml.safe_load(config)["data"])
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            "ckpt_path", start.path, f"its configuration cannot be read ({reason})", "give another"
        ) from error


def _choose_checkpoint(setup: Setup, before: Mapping[str, Any]) -> Path | None:
    options = setup.options
    configs = (setup.config, _with(before, setup.config))
    if options.ckpt_path not in (None, "last"):
        given = checkpoint_to_train_on(options.ckpt_path, options.store)
        if options.resume == "auto" and (key := load_checkpoint(given).get("lit_cnn", {}).get("key")):
            for digest in (config_digest(config, setup.data.digests["data"]) for config in configs):
                for run in unfinished_runs(options.store, setup.experiment, digest):
                    if load_checkpoint(run.checkpoint).get("lit_cnn", {}).get("continued_from") == key:
                        return run.checkpoint  # it has begun to train on from there
        return given
    if options.ckpt_path is None and options.resume != "auto":
        return None
    for config in configs:
        digest = config_digest(config, setup.data.digests["data"])
        if (path := last_checkpoint(options.store, setup.experiment, digest)) is not None:
            return path
    if options.ckpt_path == "last":
        where = f"experiment {setup.experiment} in {options.store.journal_dir}"
        reason = f"no unfinished run of this configuration in {where}"
        raise UsageError("ckpt_path", "last", reason, "leave it out to start anew, or give `ckpt_path=FILE`")
    return None


def _tell_of_others(
    setup: Setup, config: Mapping[str, Any], before: Mapping[str, Any], needs_checkpoint: bool = True
) -> None:
    """Says that the newest unfinished run of the same configuration is of other images, or in another experiment."""
    store, data = setup.options.store, setup.data
    for run in unfinished_runs(store, None, None, needs_checkpoint):
        digest = run.digests.get("data", "")
        if run.config_digest not in (config_digest(each, digest) for each in (config, _with(before, config))):
            continue
        what = f"{run.run_name} in {run.folder} is unfinished and "
        if run.experiment != setup.experiment:
            if digest != data.digests["data"]:
                continue
            what += f"in experiment {run.experiment}, not {setup.experiment}"
        else:
            kept = store.splits_dir / f"{run.digests['split'][:16]}.csv"
            is_whole = data.options["limit_train"] is None
            told = changes(data.image_set, kept.read_text(encoding="utf-8"), digest, is_whole) if kept.is_file() else ""
            what += "of other images" + (f": {told}" if told else "")
        print(f"{what}; this run starts anew", file=sys.stderr)
        return


def _with(options: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "data": {**config["data"], **options}}


def check_not_beyond(start: Start, trainer: Any, num_batches: int) -> None:
    """Refuses a run without a step, but one that goes on after its last: the test may be still to come.

    Args:
        start: Where it begins.
        trainer: Its trainer.
        num_batches: Batches of an epoch.

    Raises:
        UsageError: If it is at its end already.
    """
    done, goes_on = epochs_done(start.checkpoint), start.folder is not None
    epochs = trainer.max_epochs or -1
    if 0 <= epochs < done or (epochs == done and not goes_on):
        reason = f"the run of {start.path} has trained {done:.3g} epochs already"
        raise UsageError("max_epochs", epochs, reason, "give more, or start anew: neither `resume` nor `ckpt_path`")
    if goes_on:
        return
    for each in trainer.callbacks:
        if isinstance(each, Timer) and each._duration is not None:
            state = start.checkpoint.get("callbacks", {}).get(each.state_key, {}).get("time_elapsed", {})
            if (seconds := state.get("train", 0.0)) >= each._duration:
                reason = f"the run of {start.path} has trained {seconds:.3g} seconds already, of {each._duration:g}"
                raise UsageError("max_time", None, reason, "give more, or start anew, without `ckpt_path`")
    steps = steps_done(start.checkpoint, trainer, batches_of(start.checkpoint), num_batches)
    if 0 <= trainer.max_steps <= steps:
        reason = f"the run of {start.path} has made {steps} steps already, in epochs of this run"
        raise UsageError("max_steps", trainer.max_steps, reason, "give more, or start anew, without `ckpt_path`")
