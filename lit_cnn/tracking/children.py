"""The runs below one as MLflow has them: those that other machines have sent too."""

from collections.abc import Collection, Sequence

from lit_cnn.tracking.delivery import KEY_TAG, PARENT_TAG
from lit_cnn.tracking.queries import RunInfo, client, list_runs
from lit_cnn.tracking.store import Store

SUPERSEDED = "superseded_by"
"""Tag of a run that was begun anew where it could not be gone on with; has the id of the other one."""


def settle_children(
    store: Store, experiment: str, parent_id: str, kept: Collection[str], known_by: Sequence[str]
) -> dict[str, str]:
    """Marks runs that were begun anew on another machine, so that each is shown and counted once.

    Args:
        store: Where they are.
        experiment: The name of the parent's.
        parent_id: MLflow's id of the parent.
        kept: Keys of those that came to their end.
        known_by: Tags that have the same values in all attempts at a run, and are taken away from those that are not
            kept.

    Returns:
        The key of each -> MLflow's id.

    Raises:
        UsageError: If the store does not answer.
    """
    runs = list_runs(store, experiment, f"tags.`{PARENT_TAG}` = '{parent_id}'")
    kept_by_tags = {_tags(run, known_by): run for run in runs if run.tags.get(KEY_TAG) in kept}
    for run in runs:
        other = kept_by_tags.get(_tags(run, known_by))
        if other is not None and run.tags.get(KEY_TAG) not in kept:
            _set_aside(store, run, other, known_by)
    return {run.tags[KEY_TAG]: run.run_id for run in runs if KEY_TAG in run.tags}


def _tags(run: RunInfo, names: Sequence[str]) -> tuple[str | None, ...]:
    return tuple(run.tags.get(name) for name in names)


def _set_aside(store: Store, run: RunInfo, other: RunInfo, known_by: Sequence[str]) -> None:
    connected = client(store)
    for name, value in {SUPERSEDED: other.run_id, "trial": "superseded"}.items():
        connected.set_tag(run.run_id, name, value)
    for name in known_by:
        if name in run.tags:
            connected.delete_tag(run.run_id, name)
    if run.status == "RUNNING":
        connected.set_terminated(run.run_id, "KILLED")
