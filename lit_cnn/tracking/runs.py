"""Runs as a table."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lit_cnn.tracking.queries import list_runs
from lit_cnn.tracking.store import resolve_store

if TYPE_CHECKING:
    import pandas

_TAGS = ("arch", "transfer", "image_size", "seed", "data", "parameters", "kind", "val_interval", "test_interval")
_METRICS = ("best/val/acc", "best/val/loss", "test/acc", "test/loss")
_COLUMNS = ["label", "best/val/acc", "test/acc", "test_interval", "status", "id", "kind", "arch", "transfer"]
_COLUMNS += ["image_size", "seed", "data", "parameters", "val_interval", "best/val/loss", "test/loss"]
_COLUMNS += ["experiment", "start_time", "name"]


def runs(experiment: str | None = None, filter: str = "", tracking_uri: str | None = None) -> "pandas.DataFrame":
    """Returns the runs of an experiment, or of all experiments, as a data frame with a row for each, newest first.

    The first columns are `label`, which tells runs apart, `best/val/acc`, `test/acc`, `test_interval` (Wilson's, 95 %),
    `status` and `id`; then `kind`, `arch`, `transfer`, `image_size`, `seed`, `data`, `parameters`, `val_interval`,
    `best/val/loss`, `test/loss`, `experiment`, `start_time` (UTC) and `name`. What a run does not have is None or NaN;
    one of an earlier version without a label has its name instead.

    Args:
        experiment: Its name; default: all.
        filter: Which runs, in MLflow's search syntax, such as "metrics.`best/val/acc` > 0.9 and tags.seed = '1'".
        tracking_uri: The MLflow store; see `resolve_store`.

    Raises:
        UsageError: If there is no store, no such experiment, or the filter makes no sense to MLflow.

    Example:
        >>> bool(lit_cnn.runs("digits")["test/acc"].notna().any())
        True
    """
    import pandas

    rows = [
        {
            "label": run.tags.get("label", run.name),
            "id": run.run_id,
            "name": run.name,
            "status": run.status,
            **{tag: run.tags.get(tag) for tag in _TAGS},
            **{metric: run.metrics.get(metric) for metric in _METRICS},
            "experiment": run.experiment_name,
            "start_time": datetime.fromtimestamp(run.start_time / 1000, UTC),
        }
        for run in list_runs(resolve_store(tracking_uri), experiment, filter)
    ]
    return pandas.DataFrame(rows, columns=_COLUMNS)
