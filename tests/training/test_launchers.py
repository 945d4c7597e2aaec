"""Variables that a shell, a notebook or a batch system leaves, and those that say that several were started."""

import multiprocessing
import time
from typing import Any

import pytest
from lightning.pytorch import Trainer

from lit_cnn.core.errors import UsageError
from lit_cnn.training import launchers
from lit_cnn.training.callbacks import RunCheckpoints
from lit_cnn.training.launchers import OneProcess, environments
from lit_cnn.training.process import signals_stop

ONE: dict[str, Any] = {"devices": 1, "accelerator": "cpu"}
TWO: dict[str, Any] = {"devices": 2, "accelerator": "cpu", "strategy": "ddp"}
# As srun sets them in its second task, and sbatch in a script.
SRUN = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_JOB_ID": "7"}
SBATCH = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that leaves the line to the first one ends at once."""
    monkeypatch.setattr(launchers, "_UNTIL_TOLD", 0.0)


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "1"},
        {"SLURM_NTASKS": "2"},
        SBATCH,
        {**SRUN, "SLURM_JOB_NAME": "interactive"},
        {**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},
        {"LOCAL_RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "1", "GROUP_RANK": "1"},
        {**TORCHRUN, "WORLD_SIZE": "1"},
    ],
    ids=str,
)
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_what_is_left_in_the_environment_changes_no_run_of_one_device(
    variables: dict[str, str], strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    given = {**ONE, "strategy": strategy}
    trainer = Trainer(**given, plugins=[*environments(given, [])], logger=False, enable_checkpointing=False)
    assert (trainer.world_size, trainer.global_rank, trainer.local_rank, trainer.node_rank) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    ("variables", "starter"),
    [
        (TORCHRUN, "torchrun"),
        ({**SRUN}, "srun"),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, "srun"),
    ],
)
def test_several_tasks_of_a_run_of_one_device_are_refused(
    variables: dict[str, str], starter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, variables)
    with pytest.raises(UsageError, match=rf"devices=1: {starter} started 2 processes .*give devices=2 "):
        environments(ONE, [])
    assert environments(TWO, []) == environments(ONE, [OneProcess()]) == []  # those are for Lightning to settle
    set_all(monkeypatch, {"RANK": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"})
    with pytest.raises(SystemExit, match="2"):  # the first one has said it
        environments(ONE, [])


def test_the_end_of_a_run_waits_for_no_process_that_it_has_forked() -> None:
    trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    with signals_stop(trainer, RunCheckpoints()):
        worker.start()
        began = time.monotonic()
    try:
        assert time.monotonic() - began < 20
    finally:
        worker.kill()
        worker.join()
