"""Carries one journal to MLflow. It may stop at any point and start again: what MLflow has, it keeps once.

Metrics carry the time at which they were logged, and MLflow's table of metrics has (key, time, step, run, value) as its
key and skips a row that it has; params and tags are set to the value they have; files are replaced by themselves.
"""

import math
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from lit_cnn.core.credentials import without_credentials
from lit_cnn.core.files import sha256_of_file, sync_to_disk
from lit_cnn.tracking import names, outbox
from lit_cnn.tracking.client import connect, is_timeout, require_reachable
from lit_cnn.tracking.journal import JOURNAL, Record, RunHeader, now_ms, read_header, read_journal, read_owner
from lit_cnn.tracking.progress import MlflowRun, Progress, journal_size, sending
from lit_cnn.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

KEY_TAG = "lit_cnn.key"
PARENT_TAG = "mlflow.parentRunId"
_OPENS_PARENT = {"mlflow.runType": "evaluation"}
"""By this tag of a child MLflow 3.17's table of runs shows the parent unfolded; nothing else looks at it."""
_METRICS_PER_BATCH = 800  # MLflow takes 1,000, in a request of at most 1 MB
_ENTRIES_PER_BATCH = 100


class Courier:
    """Carries journals to one store; connects when there is something to carry."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._connected: MlflowClient | None = None
        self._experiments: dict[str, str] = {}

    def deliver(self, folder: Path, time_limit: float = math.inf) -> bool:
        """Sends what the store does not have yet of the journal in `folder`, and notes in the folder how that went.

        Does nothing if another process is at it.

        Args:
            folder: The run's folder.
            time_limit: Seconds after which to leave the rest for the next call.

        Returns:
            Whether a rest was left.

        Raises:
            ConnectionError: If the server does not answer.
            Exception: Whatever else MLflow raised. The next call goes on where this one stopped.
        """
        with sending(folder) as may_send:
            if not may_send:
                return False
            progress = Progress.read(folder)
            try:
                return self._deliver(folder, progress, time.monotonic() + time_limit)
            except Exception as error:
                reason = self._reason_of(error)
                progress.note_failure(in_one_line(reason))
                progress.write(folder)
                raise reason from None if reason is error else error

    @property
    def _client(self) -> "MlflowClient":
        if self._connected is None:
            self._connected = connect(self.store)
        return self._connected

    def _reason_of(self, error: Exception) -> Exception:
        """Returns a ConnectionError in place of what MLflow made of a server that is gone or frozen; else `error`."""
        try:
            require_reachable(self.store)
        except ConnectionError as unreachable:
            return unreachable
        if is_timeout(error):
            return ConnectionError(f"{self.store.label} takes connections and does not answer")
        return error

    def _deliver(self, folder: Path, progress: Progress, deadline: float) -> bool:
        is_orphan = read_owner(folder) is None  # asked before reading on: its owner writes nothing after this
        _make_durable(folder)
        run = self._run_of(folder)
        if progress.status is None:
            progress.status = "RUNNING"
        for batch, end in _batches(folder, progress.offset):
            if isinstance(batch, list):
                self._send_metrics(run, batch)
            else:
                self._send(run, folder, batch, progress)
            progress.note_success(end)
            progress.write(folder)
            if time.monotonic() > deadline:
                return True
        if is_orphan and progress.status == "RUNNING":
            self._client.set_terminated(run.run_id, "KILLED", _last_change(folder))
            progress.status = "KILLED"
        size = journal_size(folder)
        if progress.status != "RUNNING" and (is_orphan or progress.offset == size):
            self._undo_late_requests(run, folder.name, progress.status)
            progress.complete_size = size
            progress.note_success(progress.offset)
            progress.write(folder)
        return False

    def _run_of(self, folder: Path) -> MlflowRun:
        """Returns the journal's MLflow run; makes it, and that of its parent before it, if it is not there."""
        run = MlflowRun.read(folder)
        if run is not None:
            return run
        header = read_header(folder)
        if header is None:
            raise ValueError(f"{folder}: the journal has no header")
        experiment_id = self._experiment(header.experiment)
        run_id = self._find_run(experiment_id, header.key) or self._create_run(experiment_id, header, folder.parent)
        run = MlflowRun(run_id, experiment_id)
        run.write(folder)
        return run

    def _find_run(self, experiment_id: str, key: str) -> str | None:
        found = self._runs_of(experiment_id, key)
        return found[0].info.run_id if found else None

    def _runs_of(self, experiment_id: str, key: str) -> "list[Run]":
        return list(self._client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'"))

    def _undo_late_requests(self, run: MlflowRun, key: str, status: str) -> None:
        """Removes what a server did after it was no longer waited for: a second run of the key, an earlier status."""
        for found in self._runs_of(run.experiment_id, key):
            if found.info.run_id != run.run_id:
                self._client.delete_run(found.info.run_id)
            elif found.info.status != status:
                self._client.set_terminated(run.run_id, status, found.info.end_time)

    def _create_run(self, experiment_id: str, header: RunHeader, journal_dir: Path) -> str:
        # A run's own label comes with its tags; an ensemble, say, has its name.
        tags = {KEY_TAG: header.key, "mlflow.user": header.user, "label": header.run_name}
        if header.parent_key is not None:
            parent_id = self._parent_of(experiment_id, journal_dir / header.parent_key)
            if parent_id is not None:
                tags |= {PARENT_TAG: parent_id, **_OPENS_PARENT}
        run = self._client.create_run(experiment_id, header.created, tags, header.run_name)
        return run.info.run_id

    def _parent_of(self, experiment_id: str, folder: Path) -> str | None:
        """Returns the id of the parent's run, which is made if need be; None if nothing is left of the parent."""
        if not (folder / JOURNAL).exists():
            return self._find_run(experiment_id, folder.name)
        with sending(folder) as may_send:
            run = self._run_of(folder) if may_send else MlflowRun.read(folder)
        if run is None:
            raise BlockingIOError("another process is making the parent run; trying again")
        return run.run_id

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = get_or_create_experiment(self._client, self.store, name)
        return self._experiments[name]

    def _send_metrics(self, run: MlflowRun, metrics: "list[Metric]") -> None:
        for start in range(0, len(metrics), _METRICS_PER_BATCH):
            self._client.log_batch(run.run_id, metrics=metrics[start : start + _METRICS_PER_BATCH])

    def _send(self, run: MlflowRun, folder: Path, record: Record, progress: Progress) -> None:
        """Sends one record that is not of metrics."""
        match record["kind"]:
            case "header":
                pass  # went with the making of the run
            case "params":
                self._send_params(run, record["values"])
            case "tags":
                self._send_tags(run, record["values"])
            case "dataset":
                self._send_dataset(run, record)
            case "artifact":
                self._send_file(run, folder, record)
            case "attempt":
                self._client.update_run(run.run_id, status="RUNNING")
                progress.status = "RUNNING"
            case "end":
                self._client.set_terminated(run.run_id, record["status"], record["time"])
                progress.status = record["status"]
            case kind:
                raise ValueError(f"{folder}: a later lit_cnn wrote records of kind {kind!r}; send them with that one")

    def _send_params(self, run: MlflowRun, params: dict[str, str]) -> None:
        """Sends the params that MLflow does not have. It refuses changes, so a changed value becomes a tag."""
        from mlflow.entities import Param

        known = self._client.get_run(run.run_id).data.params
        params = {name: value[: names.MAX_PARAM_LENGTH] for name, value in params.items()}
        new = [Param(name, value) for name, value in params.items() if name not in known]
        for start in range(0, len(new), _ENTRIES_PER_BATCH):
            self._client.log_batch(run.run_id, params=new[start : start + _ENTRIES_PER_BATCH])
        changed = {name: value for name, value in params.items() if known.get(name, value) != value}
        self._send_tags(run, {names.cleaned(f"{names.PARAM_CHANGED}{name}"): changed[name] for name in changed})

    def _send_tags(self, run: MlflowRun, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        entries = [RunTag(name, value[: names.MAX_TAG_LENGTH]) for name, value in tags.items()]
        for start in range(0, len(entries), _ENTRIES_PER_BATCH):
            self._client.log_batch(run.run_id, tags=entries[start : start + _ENTRIES_PER_BATCH])

    def _send_dataset(self, run: MlflowRun, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"][: names.MAX_DIGEST_LENGTH],
            source_type="local",
            source=record["source"],
            schema=record["schema"],
            profile=record["profile"],
        )
        tags = [InputTag("mlflow.data.context", record["context"])]
        self._client.log_inputs(run.run_id, [DatasetInput(dataset, tags)])

    def _send_file(self, run: MlflowRun, folder: Path, record: Record) -> None:
        target, sha256 = PurePosixPath(record["target"]), record["sha256"]
        waiting = outbox.path_of(folder, str(target), sha256)
        if not waiting.exists():
            return  # sent in an attempt that was cut off, or replaced by a later file of the same name
        if sha256_of_file(waiting) != sha256:
            tag = names.cleaned(f"lit_cnn.not_stored.{target}")
            self._client.set_tag(run.run_id, tag, "the file was written to after it was logged")
            return
        root = local_folder(self._client.get_run(run.run_id).info.artifact_uri)
        if root is None:
            if target.suffix == ".ckpt":
                # First: under the new digest nothing is found that was computed with the file that is replaced.
                self._client.set_tag(run.run_id, names.sha256_tag(str(target)), sha256)
            parent = str(target.parent)
            self._client.log_artifact(run.run_id, str(waiting), None if parent == "." else parent)
        else:
            outbox.put_in_place(waiting, root / target)
        outbox.remove(waiting)


def get_or_create_experiment(client: "MlflowClient", store: Store, name: str) -> str:
    """Returns the experiment's id; makes the experiment, with its artifacts in the store's folder, if need be.

    Raises:
        ValueError: If the experiment is deleted: MLflow then takes no runs into it.
        MlflowException: Whatever else MLflow raised.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        root = store.artifact_location
        try:
            return client.create_experiment(name, f"{root}/{_folder_name(name)}" if root else None)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)  # another process was quicker
    if found is None:
        raise ValueError(f"experiment {name!r} was there a moment ago and is gone")
    if found.lifecycle_stage == "deleted":
        raise ValueError(
            f"experiment {name!r} is deleted in MLflow; "
            f"restore it with: mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found.experiment_id


def local_folder(artifact_uri: str) -> Path | None:
    """Returns the folder that an artifact URI means on this machine, or None if it is one of a server's."""
    parts = urlsplit(artifact_uri)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    return Path(artifact_uri) if artifact_uri.startswith("/") else None


def in_one_line(error: Exception) -> str:
    """Returns what an exception says, in one line of at most 300 characters, without passwords."""
    return without_credentials(" ".join(str(error).split()) or type(error).__name__)[:300]


def _batches(folder: Path, offset: int) -> "Iterator[tuple[list[Metric] | Record, int]]":
    """Yields the journal's unsent part, each piece with the offset behind it: many metrics, or one other record."""
    from mlflow.entities import Metric

    metrics: list[Metric] = []
    end = offset
    for record, after in read_journal(folder, offset):
        if record["kind"] == "metrics":
            at, step = record["time"], record["step"]
            metrics += [Metric(name, value, at, step) for name, value in record["values"].items()]
        if metrics and (record["kind"] != "metrics" or len(metrics) >= _METRICS_PER_BATCH):
            yield metrics, after if record["kind"] == "metrics" else end
            metrics = []
        if record["kind"] != "metrics":
            yield record, after
        end = after
    if metrics:
        yield metrics, end


def _make_durable(folder: Path) -> None:
    """MLflow must never know more than the journal, or a resume after a power cut would log a step twice."""
    if Progress.read(folder).offset < journal_size(folder):
        sync_to_disk(folder / JOURNAL)


def _last_change(folder: Path) -> int:
    return min(int((folder / JOURNAL).stat().st_mtime * 1000), now_ms())


def _folder_name(experiment: str) -> str:
    """Returns a folder's name for an experiment, which may hold any characters; different for different names."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", experiment).lstrip(".")[:80]
    return plain if plain == experiment else f"{plain}-{zlib.crc32(experiment.encode()):08x}"
