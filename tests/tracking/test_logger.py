"""The logger with a real Trainer, and the recorder's order of calls."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_cnn.core.errors import UsageError
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.progress import Progress, journal_size
from lit_cnn.tracking.queries import download_artifact, find_runs
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.tracking.sender import sync
from lit_cnn.tracking.store import Store
from tests.tracking.conftest import stored_metrics


@pytest.fixture(autouse=True)
def idle_sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The tests here send with `sync`; the sender as a process, which has tests of its own, does nothing here."""
    process = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr("lit_cnn.tracking.supervisor._spawn", lambda store: process.pid)
    yield
    process.kill()
    process.wait()


class Line(LightningModule):
    """Fits a line; logs one value a step and one an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = (self.layer(batch[0]) ** 2).mean()
        self.log("train/loss", loss)
        return loss

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("test/acc", 0.5)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def make_trainer(logger: JournalLogger, folder: Path) -> Trainer:
    return Trainer(
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def test_trainer_logs_fit_and_test_as_one_run(store: Store, tmp_path: Path) -> None:
    logger = JournalLogger("digits", tracking_uri=store.tracking_uri)
    assert (logger.name, logger.version, logger.save_dir) == ("digits", None, None)
    assert not store.journal_dir.exists()
    logger.begin(run_name="line", params={"model.arch": "line", "lr": 0.1}, tags={"arch": "line"})
    data = DataLoader(TensorDataset(torch.ones(8, 1)), batch_size=2)
    trainer, module = make_trainer(logger, tmp_path), Line()
    trainer.fit(module, data)
    sync(store, show_progress=False)
    (run,) = find_runs(store, [logger.key])
    assert (run.status, run.name) == ("FINISHED", "line")
    logger.set_tags({"stage": "test"})
    sync(store, show_progress=False)
    assert find_runs(store, [logger.key])[0].status == "RUNNING"
    trainer.test(module, data, verbose=False)
    logger.end("FINISHED")
    logger.end("FAILED")  # the first word is the last
    logger.finalize("failed")
    sync(store, show_progress=False)
    (run,) = find_runs(store, [logger.key])
    assert (run.status, run.params) == ("FINISHED", {"model.arch": "line", "lr": "0.1"})
    rows = stored_metrics(store.database, logger.key)
    assert [(name, step) for name, step, *_ in rows] == [("test/acc", 8), *(("train/loss", s) for s in range(8))]
    assert logger.version == logger.key
    assert logger.run_id == run.run_id


def test_a_failed_fit_is_a_failed_run(store: Store, tmp_path: Path) -> None:
    class Broken(Line):
        def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
            raise ArithmeticError("broken")

    logger = JournalLogger("digits", tracking_uri=store.tracking_uri)
    logger.begin(run_name="line", params={}, tags={})
    with pytest.raises(ArithmeticError):
        make_trainer(logger, tmp_path).fit(Broken(), DataLoader(TensorDataset(torch.ones(8, 1))))
    sync(store, show_progress=False)
    assert find_runs(store, [logger.key])[0].status == "FAILED"
    logger.end("FAILED")


def test_a_resumed_run_is_the_same_run(store: Store) -> None:
    first = Recorder("digits", store.tracking_uri)
    first.begin(run_name="line", params={"lr": 0.1}, tags={})
    for step in range(5):
        first.log_metrics({"a": step}, step)
    first.flush()
    first.end("KILLED")
    sync(store, show_progress=False)
    second = Recorder("digits", store.tracking_uri)
    second.begin(run_name="line", params={"lr": 0.2}, tags={}, resume_folder=first.run_folder)
    assert (second.key, second.run_id) == (first.key, first.run_id)
    for step in range(3, 8):
        second.log_metrics({"a": step}, step)
    second.end("FINISHED")
    sync(store, show_progress=False)
    (run,) = find_runs(store, [first.key])
    assert (run.status, run.params["lr"], run.tags["lit_cnn.param_changed.lr"]) == ("FINISHED", "0.2", "0.2")
    assert [(step, value) for _, step, value, *_ in stored_metrics(store.database, first.key)] == [
        (step, step) for step in range(8)
    ]


def test_files_and_texts_arrive(store: Store, tmp_path: Path) -> None:
    recorder = Recorder("digits", store.tracking_uri)
    recorder.begin(run_name="ensemble", params={}, tags={"mlflow.note.content": "| a |"})
    for text in ("old", "new"):
        (tmp_path / "plot.svg").write_text(text)
        recorder.log_artifact(tmp_path / "plot.svg", "evaluation")
        (tmp_path / "plot.svg").unlink()
    assert len(list((recorder.run_folder / "outbox").rglob("plot.svg"))) == 1  # an outage keeps one version of each
    recorder.log_text("seed: 0", "config.yaml")
    recorder.log_dataset("digits", "0123", "test", "scikit-learn", profile='{"images": 3}')
    recorder.end("FINISHED")
    sync(store, show_progress=False)
    (run,) = find_runs(store, [recorder.key])
    assert download_artifact(store, run, "evaluation/plot.svg").read_text() == "new"
    assert download_artifact(store, run, "config.yaml").read_text() == "seed: 0"
    assert not list((recorder.run_folder / "outbox").rglob("*.*"))


def test_calls_out_of_order_are_refused(store: Store, tmp_path: Path) -> None:
    recorder = Recorder("digits", store.tracking_uri)
    with pytest.raises(RuntimeError, match="begin"):
        recorder.log_metrics({"a": 1.0}, 0)
    with pytest.raises(UsageError, match="parameter 'l@r'"):
        recorder.begin(run_name="x", params={"l@r": 1}, tags={})
    assert not store.journal_dir.exists()
    recorder.begin(run_name="x", params={}, tags={})
    with pytest.raises(RuntimeError, match="begin"):
        recorder.begin(run_name="x", params={}, tags={})
    with pytest.raises(UsageError, match="inside the run's artifacts"):
        recorder.log_text("x", "../outside")
    with pytest.raises(ValueError, match="DONE"):
        recorder.end("DONE")
    recorder.end("FINISHED")
    with pytest.raises(RuntimeError, match="ended"):
        recorder.log_metrics({"a": 1.0}, 0)


def test_other_processes_of_a_run_log_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    logger = JournalLogger("digits", tracking_uri=store.tracking_uri)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    logger.begin(run_name="x", params={}, tags={})
    logger.log_metrics({"a": 1.0}, 0)
    logger.log_hyperparams({"a": 1})
    logger.finalize("success")
    assert not store.journal_dir.exists()


def test_an_error_of_the_sender_is_told_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_cnn.tracking.supervisor._CHECK_EVERY", 0.0)
    recorder = Recorder("digits", store.tracking_uri)
    recorder.begin(run_name="x", params={}, tags={})
    recorder.log_metrics({"a": 1.0}, 0)
    assert "Warning" not in capsys.readouterr().err
    Progress(error="disk on fire", error_since=1.0).write(recorder.run_folder)
    for step in range(1, 4):
        recorder.log_metrics({"a": 1.0}, step)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "disk on fire" in said
    assert "lit-cnn sync" in said
    recorder.end("FINISHED")


def test_silence_is_counted_while_something_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seconds = 1000.0
    clock = SimpleNamespace(monotonic=lambda: seconds, time=lambda: seconds)
    monkeypatch.setattr("lit_cnn.tracking.supervisor.time", clock)
    recorder = Recorder("digits", "http://127.0.0.1:9")
    recorder.begin(run_name="x", params={}, tags={})
    (recorder.run_folder / "send.lock").touch()
    os.utime(recorder.run_folder / "send.lock", (seconds, seconds))  # the sender is at work
    for step in range(4):  # a server takes all within a second of the time that a step of 80 s takes
        recorder.log_metrics({"a": 1.0}, step)
        Progress(offset=journal_size(recorder.run_folder)).write(recorder.run_folder)
        seconds += 2
        recorder.check_sender()
        seconds += 80
    recorder.log_metrics({"a": 1.0}, 4)
    assert capsys.readouterr().err == ""
    seconds += 4
    recorder.check_sender()
    assert capsys.readouterr().err == ""
    seconds += 80
    recorder.log_metrics({"a": 1.0}, 5)
    assert "http://127.0.0.1:9 has taken nothing for 84 s" in capsys.readouterr().err
    recorder.end("FINISHED")
