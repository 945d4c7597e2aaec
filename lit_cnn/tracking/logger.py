"""Lightning's Trainer logs a run: the same as `Recorder`, from the first process only."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_cnn.tracking.recorder import Recorder


class JournalLogger(Recorder, Logger):
    """A logger for `Trainer(logger=…)`: journal first, MLflow by way of the sender.

    `begin` and the calls that Trainer makes do nothing in all but the first process of a distributed run; the others
    of `Recorder` are to be made there only.

    Attributes:
        run_name: The run's name, if it was given; `begin` says the last word.
    """

    def __init__(
        self,
        experiment_name: str = "lit_cnn",
        run_name: str | None = None,
        tracking_uri: str | None = None,
        buffer_when_disk_full: bool = False,
    ) -> None:
        """Takes note of the names.

        Args:
            experiment_name: The MLflow experiment.
            run_name: The run's name in MLflow.
            tracking_uri: `sqlite:///PATH.db`, `http(s)://HOST:PORT` or `postgresql://…`; by default
                MLFLOW_TRACKING_URI, or else `sqlite:///mlruns/mlflow.db`.
            buffer_when_disk_full: Keep in memory what a full disk does not take, until there is room.

        Raises:
            UsageError: If MLflow keeps no runs at such an address, or takes no such experiment name.
        """
        Logger.__init__(self)
        Recorder.__init__(self, experiment_name, tracking_uri, buffer_when_disk_full=buffer_when_disk_full)
        self.run_name = run_name

    @rank_zero_only
    def begin(
        self,
        *,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, Any],
        parent_key: str | None = None,
        resume_folder: Path | None = None,
    ) -> None:
        """Starts or resumes the run; see `Recorder.begin`."""
        self.run_name = run_name
        super().begin(run_name=run_name, params=params, tags=tags, parent_key=parent_key, resume_folder=resume_folder)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs what Trainer gives, without the "epoch" that it adds."""
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the params are given to `begin`, all of them and once."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Notes the end of a stage; Trainer calls it after each of fit, validate and test.

        Args:
            status: Lightning's: "success", else the run is FAILED.
        """
        if self._journal is not None and not self._journal.closed:
            self.set_status("FINISHED" if status == "success" else "FAILED")

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment_name

    @property
    def version(self) -> str | None:
        """The run's key; None before `begin`."""
        return self.key if self._journal is not None else None

    @property
    def save_dir(self) -> str | None:
        """None: Lightning is to save nothing of its own accord."""
        return None
