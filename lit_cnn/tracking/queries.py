"""Finds runs in a store, and their files."""

import errno
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.core.file_names import as_text
from lit_cnn.tracking import names, outbox
from lit_cnn.tracking.client import connect, repair_moved_store, unreachable
from lit_cnn.tracking.delivery import KEY_TAG, in_one_line, local_folder
from lit_cnn.tracking.run import Run, id_of
from lit_cnn.tracking.store import BEST_CHECKPOINT, Store

if TYPE_CHECKING:
    from mlflow.entities import Run as EntityRun
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

__all__ = [
    "BEST_CHECKPOINT",
    "RunInfo",
    "artifact_names",
    "artifact_of_version",
    "artifact_sha256",
    "client",
    "download_artifact",
    "experiment_id",
    "find_runs",
    "list_runs",
    "live_run_ids",
    "metric_history",
    "registered_checkpoint",
    "registered_version",
    "repair_moved_store",
    "search_runs",
    "upload_artifact",
]

_SHORTEST_PREFIX = 6


@dataclass(frozen=True)
class RunInfo:
    """A run as MLflow has it.

    Attributes:
        run_id: MLflow's id.
        experiment_id: MLflow's id of the experiment.
        experiment_name: Name of the experiment.
        name: The run's name.
        status: RUNNING, FINISHED, FAILED or KILLED.
        tags: Name -> value.
        params: Name -> value.
        metrics: Name -> last value.
        artifact_uri: Where the run's files are.
        start_time: Milliseconds since 1970.
    """

    run_id: str
    experiment_id: str
    experiment_name: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    artifact_uri: str
    start_time: int


def client(store: Store) -> "MlflowClient":
    """Returns an MLflow client of a store that exists.

    Raises:
        UsageError: If the sqlite file is not there, or the server does not answer.
    """
    if store.database is not None and not store.database.is_file():
        raise UsageError("tracking_uri", store.tracking_uri, "no runs there yet", "make some with: lit-cnn fit")
    try:
        return connect(store)
    except ConnectionError as error:
        raise unreachable(store, error) from error


def experiment_id(store: Store, name: str) -> str:
    """Returns MLflow's id of an experiment.

    Raises:
        UsageError: If there is no such experiment; names those there are.
    """
    connected = client(store)
    with _in_one_line(store):
        found = connected.get_experiment_by_name(as_text(name))
        if found is not None and found.lifecycle_stage == "active":
            return found.experiment_id
        others = sorted(experiment.name for experiment in connected.search_experiments())
    raise UsageError("experiment", name, f"not in {store.label}", f"there are: {', '.join(others)}")


def find_runs(store: Store, runs: Sequence[Run | str]) -> list[RunInfo]:
    """Returns the runs with these ids, in this order.

    Args:
        store: Where to look.
        runs: Runs, MLflow's run ids, our keys, or the first 6 or more characters of either.

    Raises:
        UsageError: If no run, or more than one, begins with an id.
    """
    connected = client(store)
    with _in_one_line(store):
        of_ids = {experiment.experiment_id: experiment.name for experiment in connected.search_experiments()}
        return [_info(_find_run(connected, list(of_ids), id_of(run), store), of_ids) for run in runs]


def list_runs(
    store: Store, experiment: str | None = None, filter: str = "", order_by: str = "attributes.start_time DESC"
) -> list[RunInfo]:
    """Returns all runs that match and are not deleted.

    Args:
        store: Where to look.
        experiment: Name of the experiment; default: all that are not deleted.
        filter: In MLflow's search syntax, such as "metrics.`val/acc` > 0.9 and tags.arch = 'lenet5'".
        order_by: Such as "metrics.`best/val/acc` DESC"; newest first by default.

    Raises:
        UsageError: If the experiment is not there, or the filter makes no sense to MLflow.
    """
    from mlflow.exceptions import MlflowException

    connected, page = client(store), None
    if experiment is None:
        with _in_one_line(store):
            names = {each.experiment_id: each.name for each in connected.search_experiments()}
    else:
        names = {experiment_id(store, experiment): experiment}
    found: list[RunInfo] = []
    try:
        while True:
            runs = connected.search_runs(list(names), filter, max_results=1000, order_by=[order_by], page_token=page)
            found += [_info(run, names) for run in runs]
            if not (page := runs.token):
                return found
    except MlflowException as error:
        raise UsageError("filter", repr(filter), f"MLflow does not understand it: {in_one_line(error)}") from error


def search_runs(
    store: Store, experiment: str, filter: str = "", order_by: str = "attributes.start_time DESC"
) -> list[RunInfo]:
    """Returns the runs of an experiment that match, of which there must be one; see `list_runs`.

    Raises:
        UsageError: If the experiment is not there, MLflow does not understand the filter, or no run matches.
    """
    runs = list_runs(store, experiment, filter, order_by)
    if not runs:
        raise UsageError("filter", repr(filter), f"matches no run of experiment {experiment!r}", "loosen it")
    return runs


def live_run_ids(store: Store) -> set[str]:
    """Returns MLflow's ids of all runs that are not deleted, in experiments that are not deleted."""
    return {run.run_id for run in list_runs(store)}


def metric_history(store: Store, run: RunInfo, metric: str) -> list[tuple[int, float]]:
    """Returns a metric's (step, value) pairs in the order of their steps; none if the run never logged it."""
    with _in_one_line(store):
        history = client(store).get_metric_history(run.run_id, metric)
    return sorted((entry.step, entry.value) for entry in history)


def download_artifact(store: Store, run: RunInfo, artifact_path: str, target_dir: Path | None = None) -> Path:
    """Returns a local path of one of the run's files; no copy is made of a file on this machine.

    Args:
        store: Where the run is.
        run: Whose file it is.
        artifact_path: Such as "checkpoints/best.ckpt".
        target_dir: Where a file from a server goes; a new temporary folder by default.

    Raises:
        UsageError: If the run has no such file.
    """
    from mlflow.exceptions import MlflowException

    root = local_folder(run.artifact_uri)
    missing = f"{run.name} has no file {artifact_path}"
    if root is not None:
        if (root / artifact_path).exists():
            return root / artifact_path
        raise UsageError("run", run.run_id, missing, f"looked in {root}")
    target = Path(target_dir or tempfile.mkdtemp(prefix="lit_cnn-"))
    target.mkdir(parents=True, exist_ok=True)
    try:
        return Path(client(store).download_artifacts(run.run_id, artifact_path, os.fspath(target)))
    except MlflowException as error:
        raise UsageError("run", run.run_id, missing, f"{store.label} says: {in_one_line(error)}") from error


def upload_artifact(store: Store, run: RunInfo, file: Path, artifact_path: str) -> None:
    """Puts a file among a run's, in place of one of the same name; on this machine whole or not at all.

    Args:
        store: Where the run is.
        run: Whose file it becomes.
        file: Keeps its name; must from then on only be replaced by renaming, as it may become one with the run's.
        artifact_path: Folder among the run's files, such as "logits".

    Raises:
        UsageError: If it cannot be put there: the server is away, the run is gone, nothing may be written.
    """
    from mlflow.exceptions import MlflowException

    root = local_folder(run.artifact_uri)
    try:
        if root is None:
            client(store).log_artifact(run.run_id, os.fspath(file), artifact_path)
        elif root.is_dir():
            outbox.put_in_place(file, root / artifact_path / file.name)
        else:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(root))
    except (MlflowException, OSError) as error:  # what requests raises is an OSError too
        raise UsageError("tracking_uri", store.label, f"takes no {file.name}: {in_one_line(error)}") from error


def artifact_names(store: Store, run: RunInfo, artifact_path: str) -> set[str]:
    """Returns the names of a run's files in one folder; none if there is no such folder.

    Args:
        store: Where the run is.
        run: Whose files they are.
        artifact_path: Such as "logits".

    Raises:
        UsageError: If the server does not answer.
    """
    from mlflow.exceptions import MlflowException

    root = local_folder(run.artifact_uri)
    if root is not None:
        return {path.name for path in (root / artifact_path).glob("*")}
    try:
        listed = client(store).list_artifacts(run.run_id, artifact_path)
    except (MlflowException, OSError) as error:
        raise UsageError("tracking_uri", store.label, in_one_line(error)) from error
    return {file.path.rpartition("/")[2] for file in listed}


def artifact_sha256(run: RunInfo, artifact_path: str) -> str | None:
    """Returns the SHA-256 of a run's checkpoint: of a file on this machine its own, else what the run says of it.

    Args:
        run: Whose file it is.
        artifact_path: Such as "checkpoints/best.ckpt".

    Returns:
        64 hexadecimal digits; None if the run says nothing, as those of earlier releases on a server.
    """
    root = local_folder(run.artifact_uri)
    if root is None:
        return run.tags.get(names.sha256_tag(artifact_path))
    return hash_files([root / artifact_path])[0]


def registered_checkpoint(store: Store, address: str) -> Path:
    """Returns a local path of the checkpoint that a registered model's version has as its source.

    Args:
        store: Where the registry is.
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        UsageError: If there is no such version, or its source is not a checkpoint among a run's files.
    """
    version = registered_version(store, address)
    inside = artifact_of_version(version)
    if inside is None or not inside.endswith(".ckpt"):
        raise UsageError(
            None,
            address,
            f"its source is {version.source}, not a checkpoint of a run",
            f"register runs:/RUN_ID/{BEST_CHECKPOINT}",
        )
    (run,) = find_runs(store, [str(version.run_id)])
    return download_artifact(store, run, inside)


def registered_version(store: Store, address: str) -> "ModelVersion":
    """Returns a version in the registry as MLflow has it.

    Args:
        store: Where the registry is.
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        UsageError: If there is no such version.
    """
    from mlflow.exceptions import MlflowException

    name, separator, which = re.fullmatch(r"models:/([^@/]*)([@/]?)(.*)", address).groups()  # type: ignore[union-attr]
    if not (name and separator and which):
        raise UsageError(None, address, "give models:/NAME@ALIAS or models:/NAME/VERSION")
    connected = client(store)
    try:
        by_alias = separator == "@"
        return (connected.get_model_version_by_alias if by_alias else connected.get_model_version)(name, which)
    except MlflowException as error:
        raise UsageError(None, address, f"not in {store.label}: {in_one_line(error)}") from error


def artifact_of_version(version: "ModelVersion") -> str | None:
    """Returns which of its run's files a registered version is made from; None if it is none of them."""
    found = re.fullmatch(r"runs:/[^/]+/(.+)|.*/artifacts/(.+?)", str(version.source))
    return (found[1] or found[2]) if found and version.run_id else None


def _find_run(connected: "MlflowClient", experiment_ids: list[str], run_id: str, store: Store) -> "EntityRun":
    if len(run_id) < _SHORTEST_PREFIX or not run_id.isalnum():
        raise UsageError("run", repr(run_id), f"give at least {_SHORTEST_PREFIX} characters of its id")
    found = {}
    for column in ("attributes.run_id", f"tags.`{KEY_TAG}`"):
        for run in connected.search_runs(experiment_ids, f"{column} LIKE '{run_id}%'", max_results=4):
            found[run.info.run_id] = run
    if len(found) > 1:
        raise UsageError("run", run_id, f"more than one begins so: {', '.join(sorted(found))}", "give more of the id")
    if not found:
        raise UsageError("run", run_id, f"not in {store.label}", "'lit-cnn sync' sends runs that are still kept here")
    return next(iter(found.values()))


def _info(run: "EntityRun", experiment_names: Mapping[str, str]) -> RunInfo:
    tags = run.data.tags
    # Of a run that was resumed with others, such as more epochs: MLflow keeps a param's first value.
    changed = {tag.removeprefix(names.PARAM_CHANGED): tags[tag] for tag in tags if tag.startswith(names.PARAM_CHANGED)}
    return RunInfo(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        experiment_name=experiment_names[run.info.experiment_id],
        name=run.info.run_name,
        status=run.info.status,
        tags=tags,
        params={**run.data.params, **changed},
        metrics=run.data.metrics,
        artifact_uri=run.info.artifact_uri,
        start_time=run.info.start_time,
    )


@contextmanager
def _in_one_line(store: Store) -> Iterator[None]:
    """Turns what MLflow raises into one line for the user."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        raise UsageError("tracking_uri", store.label, in_one_line(error)) from error
