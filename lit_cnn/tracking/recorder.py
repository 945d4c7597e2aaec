"""What a run logs with: to its journal at once, to MLflow by way of the sender. Needs neither torch nor mlflow."""

import contextlib
import getpass
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lit_cnn.core.credentials import without_credentials
from lit_cnn.tracking import names, outbox
from lit_cnn.tracking.journal import Journal, RunHeader, now_ms
from lit_cnn.tracking.progress import MlflowRun
from lit_cnn.tracking.store import Store, resolve_store
from lit_cnn.tracking.supervisor import supervisor_of

_STATUSES = ("FINISHED", "FAILED", "KILLED")


class Recorder:
    """Logs one run.

    Nothing is written and no process started before `begin`. All that is logged is in a file when the call returns.

    Attributes:
        experiment_name: The MLflow experiment that the run belongs to.
        store: The store that it goes to.
        buffer_when_disk_full: Keep in memory what a full disk does not take; see `Journal`.
        is_sent_by_parent: Leave the sending to the process that logs the run's parent.
    """

    def __init__(
        self, experiment_name: str, tracking_uri: str | None = None, *, buffer_when_disk_full: bool = False
    ) -> None:
        names.check_experiment_name(experiment_name)
        self.buffer_when_disk_full = buffer_when_disk_full
        self.experiment_name = experiment_name
        self.store: Store = resolve_store(tracking_uri)
        self.is_sent_by_parent = False
        self._journal: Journal | None = None
        self._has_ended = False
        self._waiting: dict[str, Path] = {}

    def begin(
        self,
        *,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent_key: str | None = None,
        resume_folder: Path | None = None,
    ) -> None:
        """Starts the run, or goes on with the one in `resume_folder`, and has it sent.

        On a resume, params that MLflow has keep their first value; a changed one becomes a tag
        `lit_cnn.param_changed.<name>`.

        Args:
            run_name: The run's name in MLflow; a run that is resumed keeps its own.
            params: Name -> value; values are kept as text.
            tags: Name -> value; values are kept as text.
            parent_key: The `key` of the run under which this one is shown.
            resume_folder: The `run_folder` of an earlier attempt.

        Raises:
            OSError: If the journal cannot be written.
            RuntimeError: If the recorder has begun already.
            UsageError: If MLflow would refuse a name, or if the run to resume is not there or still running.
        """
        if self._journal is not None:
            raise RuntimeError("begin() was called before: one recorder logs one run")
        for name in params:
            names.check_param_name(name)
        for name in tags:
            names.check_tag_name(name)
        if resume_folder is not None:
            self._journal = Journal.reopen(Path(resume_folder))
        else:
            header = RunHeader.new(self.experiment_name, run_name, self.store.label, parent_key, _user())
            self._journal = Journal.create(self.store.journal_dir, header)
        self._journal.buffer_when_disk_full = self.buffer_when_disk_full
        self.log_params(params)
        self.set_tags({"lit_cnn.host": socket.gethostname(), **tags})
        if not self.is_sent_by_parent:
            supervisor_of(self.store).add(self._journal.folder)

    @property
    def is_open(self) -> bool:
        """Whether the run has begun and was not ended."""
        return self._journal is not None and not self._journal.closed

    @property
    def key(self) -> str:
        """Our own id of the run, 32 hexadecimal digits, known at once; in MLflow the tag `lit_cnn.key`."""
        return self._begun().header.key

    @property
    def run_folder(self) -> Path:
        """The run's own folder, where its journal is and its checkpoints go."""
        return self._begun().folder

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the sender has made it there."""
        run = MlflowRun.read(self.run_folder)
        return run.run_id if run else None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Adds params that are known only at the end; values are kept as text. UsageError if MLflow refuses a name."""
        for name in params:
            names.check_param_name(name)
        self._append({"kind": "params", "values": _as_text(params)})

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs values; those whose (metric, step) was logged before, in an earlier attempt, are left out.

        Args:
            metrics: Name -> value; NaN and infinities are kept.
            step: The global step; 0 if there is none.

        Raises:
            OSError: If the journal cannot be written.
            UsageError: If MLflow would refuse a name.
        """
        journal = self._running()
        journal.log_metrics(metrics, 0 if step is None else int(step))
        self.check_sender()

    def check_sender(self) -> None:
        """Tells the user in time if MLflow takes nothing; for work that may take seconds without logging metrics."""
        if not self.is_sent_by_parent:
            supervisor_of(self.store).check()

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags of the run; values are kept as text. Raises UsageError if MLflow would refuse a name."""
        for name in tags:
            names.check_tag_name(name)
        self._append({"kind": "tags", "values": _as_text(tags)})

    def log_dataset(
        self,
        name: str,
        digest: str,
        context: str,
        source: str,
        *,
        schema: str | None = None,
        profile: str | None = None,
    ) -> None:
        """Logs which images the run used.

        Args:
            name: What the data set is called. MLflow tells data sets apart by name and digest.
            digest: Of its content; MLflow shows the first 36 characters.
            context: "train", "val" or "test".
            source: Where it came from.
            schema: JSON: what an example consists of.
            profile: JSON: numbers of examples and the like.
        """
        where = without_credentials(source)
        record = {"kind": "dataset", "name": name, "digest": digest, "context": context, "source": where}
        self._append({**record, "schema": schema, "profile": profile})

    def log_artifact(self, file: Path, artifact_path: str = "") -> None:
        """Logs a file, which may be replaced or deleted as soon as this returns (see `lit_cnn.tracking.outbox`).

        Args:
            file: Keeps its name.
            artifact_path: The folder to show it in among the run's artifacts, such as "checkpoints".

        Raises:
            OSError: If the file cannot be read or kept.
        """
        self._log_file(outbox.put_file(self._running().folder, Path(file), artifact_path))

    def log_text(self, text: str, artifact_file: str) -> None:
        """Logs a text as the file `artifact_file` among the run's artifacts, such as "evaluation/table.csv"."""
        self._log_file(outbox.put_text(self._running().folder, text, artifact_file))

    def flush(self) -> None:
        """Returns once all that was logged is safe against power loss; call it before a checkpoint gets its name.

        Raises:
            OSError: If it cannot be written.
        """
        self._begun().flush()

    def set_status(self, status: str) -> None:
        """Notes how the run ended; what is logged after that makes it a running one again.

        Args:
            status: "FINISHED", "FAILED" or "KILLED".
        """
        if status not in _STATUSES:
            raise ValueError(f"status {status!r}: one of {', '.join(_STATUSES)}")
        journal = self._begun()
        journal.append({"kind": "end", "status": status, "time": now_ms()})
        if not journal.is_waiting:
            journal.flush()
        self._has_ended = True

    def end(self, status: str) -> None:
        """Ends the run with `status` (as in `set_status`) for good; does nothing if that was done before.

        Raises:
            OSError: If the journal cannot be written.
        """
        if not self._begun().closed:
            self.set_status(status)
            self.flush()
            self._begun().close()

    def end_without_room(self, status: str) -> str:
        """Ends the run as `end` does, though the disk may be full: what finds no room is given up.

        Returns:
            What that is, in words; "" if all is stored.
        """
        journal = self._begun()
        lost = "" if journal.closed else journal.forget_unwritten()
        with contextlib.suppress(OSError):  # whoever sends the journal then sees that its process is gone
            self.end(status)
        return lost

    def wait_until_sent(self, timeout: float) -> bool:
        """Waits until MLflow has all that this process logged; see `Supervisor.wait_until_sent`."""
        return supervisor_of(self.store).wait_until_sent(timeout)

    def _log_file(self, record: dict[str, Any]) -> None:
        """Appends the record, then drops an earlier file for the same place: it need not be sent any more."""
        self._append(record)
        waiting = outbox.path_of(self.run_folder, record["target"], record["sha256"])
        earlier = self._waiting.get(record["target"])
        self._waiting[record["target"]] = waiting
        if earlier is not None and earlier != waiting:
            outbox.remove(earlier)

    def _append(self, record: dict[str, Any]) -> None:
        self._running().append(record)

    def _running(self) -> Journal:
        """Returns the journal to write to; a run that had ended goes on."""
        journal = self._begun()
        if journal.closed:
            raise RuntimeError("the run was ended: end() is the last call")
        if self._has_ended:
            self._has_ended = False
            journal.append({"kind": "attempt", "time": now_ms()})
        return journal

    def _begun(self) -> Journal:
        if self._journal is None:
            raise RuntimeError("the run has not begun: call begin() first")
        return self._journal


def _as_text(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: without_credentials(str(value)) for name, value in values.items()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no entry in the password file
        return str(os.getuid())
