"""A comparison as a run of its own in MLflow."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_cnn.tracking import Store
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.tracking.run import Run


def record_comparison(
    store: Store,
    members: Sequence[RunInfo],
    *,
    name: str,
    kind: str,
    note: str,
    files: Sequence[Path],
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Run:
    """Keeps a comparison as a run of the first member's experiment.

    Args:
        store: Where to.
        members: The runs that were compared; the run names them in its params and its tags.
        name: The run's name.
        kind: Its tag of this name.
        note: Its description in MLflow, Markdown.
        files: What goes into its folder `evaluation`.
        params: Further params.
        tags: Further tags.
        metrics: Its metrics.
    """
    recorder = Recorder(members[0].experiment_name, store.tracking_uri)
    ids = [run.run_id for run in members]
    recorder.begin(
        run_name=name,
        params={**(params or {}), **{f"member.{place}": run_id for place, run_id in enumerate(ids)}},
        tags={
            "kind": kind,
            "data": members[0].tags["data"],
            "members": " ".join(ids),
            "mlflow.note.content": note,
            **(tags or {}),
        },
    )
    if metrics:
        recorder.log_metrics(metrics)
    for file in files:
        recorder.log_artifact(file, "evaluation")
    return ended(recorder, name, metrics or {})


def ended(recorder: Recorder, name: str, metrics: Mapping[str, float]) -> Run:
    """Ends a run and gives it a minute to be sent."""
    recorder.end("FINISHED")
    is_sent = recorder.wait_until_sent(timeout=60)
    return Run(recorder.run_id or recorder.key, name, dict(metrics), is_sent=is_sent)
