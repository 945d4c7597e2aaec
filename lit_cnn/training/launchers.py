"""Who started this process, as its environment says: torchrun, srun, or a person, whatever is left over there."""

import os
import time
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch import Trainer

from lit_cnn.core.environment import number_said
from lit_cnn.core.errors import UsageError

_UNTIL_TOLD = 5.0  # seconds in which the first process prints its line, before another one ends
_OF_DEVICES = ("accelerator", "devices", "num_nodes")


class OneProcess(LightningEnvironment):
    """The environment of a run that is one process, whichever ranks a shell or a notebook has inherited."""

    @property
    def creates_processes_externally(self) -> bool:
        """False: nobody has started others."""
        return False

    @property
    def main_address(self) -> str:
        """This machine."""
        return "127.0.0.1"

    @property
    def main_port(self) -> int:
        """A free port, the same at each call."""
        if self._main_port == -1:
            self._main_port = find_free_network_port()
        return self._main_port

    def local_rank(self) -> int:
        """The first."""
        return 0

    def node_rank(self) -> int:
        """The first."""
        return 0


def environments(given: Mapping[str, Any], plugins: list[Any]) -> list[ClusterEnvironment]:
    """Returns the environment that a Trainer is to be given, if Lightning is not to find one itself.

    Args:
        given: Options of the Trainer.
        plugins: The user's.

    Raises:
        UsageError: If several processes were started, and the options are those of a run of one device: each would
            train the same.
    """
    strategy = given.get("strategy")
    if getattr(strategy, "cluster_environment", None) or any(isinstance(each, ClusterEnvironment) for each in plugins):
        return []
    options = {name: given[name] for name in _OF_DEVICES if given.get(name) is not None}
    alone = OneProcess()
    tried = Trainer(**options, plugins=alone, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    if tried.num_devices * tried.num_nodes > 1 or getattr(strategy, "parallel_devices", None):
        return []
    _require_one_task()
    return [alone]


def leave_it_to_first() -> None:
    """Ends this process, once the first one has said why.

    Raises:
        SystemExit: With the exit code of a mistake of the user.
    """
    time.sleep(_UNTIL_TOLD)  # whoever started the processes ends all of them where one ends
    raise SystemExit(2)


def _require_one_task() -> None:
    """Refuses tasks that torchrun or srun started for a run that is one process.

    A shell that SLURM opened has variables of a job with several tasks too; only those of a step say that srun started
    this process, and another rank than the first.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        starter, count, rank, certain = "torchrun", number_said("WORLD_SIZE"), number_said("RANK"), True
    elif SLURMEnvironment.job_name() not in ("bash", "interactive"):
        step, rank = number_said("SLURM_STEP_NUM_TASKS"), number_said("SLURM_PROCID")
        count, certain = step or (number_said("SLURM_NTASKS") if rank else None), step is not None
        starter = "srun"
    else:
        return
    if (count or 1) == 1:
        return
    if rank and certain:
        leave_it_to_first()
    remedy = f"give `devices={count}` (and `num_nodes` for several hosts), or start one"
    raise UsageError("devices", 1, f"{starter} started {count} processes for a run of one", remedy)
