"""The processes of one run: how they meet, take over what the first one decides, and end together.

Where Lightning starts the other processes by the same command (`ddp` from one command), they are started here, before
anything is decided, rather than in the midst of `Trainer.fit`: from there on they are as those of torchrun or srun.
`ddp_spawn` and its like start them with all that is decided; to them this module is nothing.
"""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lit_cnn.core.errors import UsageError
from lit_cnn.training.launchers import leave_it_to_first

Made = TypeVar("Made")

_CHUNK = 1 << 26  # bytes of a file that are sent at once
_DIGEST = 71  # bytes at a checkpoint's end that tell it from others: see lit_cnn.training.checkpoints


@dataclass(frozen=True)
class Ranks:
    """The processes of a run.

    Attributes:
        strategy: Lightning's, whose processes have met; None where there is one process only.
    """

    strategy: Any = None

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.strategy is not None and self.strategy.world_size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.strategy is None or self.strategy.global_rank == 0

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Returns, in all processes, what the first one makes.

        All processes are to call this, and `file_of_first`, in the same order within `ending_together`.
        """
        made = make() if self.is_first else None
        if not self.are_several:
            return made  # type: ignore[return-value]
        self._share(None)
        return self.strategy.broadcast(made)

    def from_each(self, own: Made) -> list[Made]:
        """Returns, in all processes, what each of them has, in the order of ranks."""
        if not self.are_several:
            return [own]
        self._share(None)
        return _gathered(own, self.strategy.world_size)

    def file_of_first(self, find: Callable[[], Path | None]) -> Path | None:
        """Returns where a file that the first process finds is in this one: the same, or a copy that ends with it.

        Args:
            find: Called in the first process; None is no file.
        """
        path = self.from_first(find)
        if path is None or not self.are_several:
            return path
        ends = self.from_each(_end_of(path))
        if all(end == ends[0] for end in ends):
            return path
        size = self.from_first(lambda: path.stat().st_size)
        copy = None if self.is_first else Path(tempfile.mkdtemp(prefix="lit_cnn_")) / path.name
        with contextlib.ExitStack() as files:
            source = files.enter_context(path.open("rb")) if copy is None else None
            target = files.enter_context(copy.open("wb")) if copy is not None else None
            for _ in range(0, size, _CHUNK):
                block = self.from_first(lambda: source.read(_CHUNK) if source else b"")
                if target is not None:
                    target.write(block)
        return copy or path

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Ends all processes where one of them fails, with one line: the first process's.

        Raises:
            UsageError: In the first process, what any of them raised.
            SystemExit: In the others.
        """
        try:
            yield
        except Exception as error:
            if self.are_several:
                self._share(error)
            raise
        if self.are_several:
            self._share(None)

    def _share(self, error: Exception | None) -> None:
        """Tells the others of an error, or hears of theirs."""
        told = None
        if error is not None:
            told = error if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        errors = _gathered((told, socket.gethostname()), self.strategy.world_size)
        found = [(rank, *each) for rank, each in enumerate(errors) if each[0] is not None]
        if not found or (error is not None and (self.is_first or not isinstance(error, UsageError))):
            return
        if not self.is_first:
            leave_it_to_first()
        rank, other, host = found[0]
        if not isinstance(other, UsageError):
            raise SystemExit(f"lit-cnn: error: process {rank} on {host}: {other}")
        raise UsageError(other.option, other.value, f"process {rank} on {host}: {other.reason}", other.remedy)


def join(trainer: Trainer) -> Ranks:
    """Makes the processes of a trainer's run meet, if they have not met yet, and returns them.

    Raises:
        UsageError: If as many processes were started as the trainer does not want, or they cannot find each other.
    """
    strategy: Any = trainer.strategy
    if not isinstance(strategy.launcher, _SubprocessScriptLauncher):
        return Ranks()
    if not torch.distributed.is_initialized():
        environment = strategy.cluster_environment
        _require_as_many(strategy)
        if not environment.creates_processes_externally:
            _require_meeting_place(environment, strategy.num_nodes)
            strategy.launcher._call_children_scripts()
        strategy.setup_environment()
    return Ranks(strategy)


def _require_as_many(strategy: Any) -> None:
    """Refuses other numbers of processes than the trainer wants."""
    environment, nodes, devices = strategy.cluster_environment, strategy.num_nodes, strategy.num_processes
    try:
        environment.validate_settings(num_devices=devices, num_nodes=nodes)
        if environment.world_size() == nodes * devices:
            return
        reason = f"{environment.world_size()} processes were started for {nodes} x {devices} devices"
    except ValueError as error:
        reason = " ".join(str(error).split())
    if strategy.global_rank > 0:
        leave_it_to_first()
    remedy = "start one process a device, with `num_nodes` hosts of `devices` each"
    raise UsageError("devices", devices, reason, remedy)


def _require_meeting_place(environment: Any, num_nodes: int) -> None:
    """Refuses hosts that would each wait for the others at an address of their own."""
    if not isinstance(environment, LightningEnvironment) or num_nodes == 1:
        return
    names = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
    if missing := [name for name in names if name not in os.environ]:
        remedy = "set them on every host, or start with torchrun or srun"
        raise UsageError("num_nodes", num_nodes, f"{', '.join(missing)} not in the environment", remedy)


def _gathered(own: Any, count: int) -> list[Any]:
    found = [None] * count
    torch.distributed.all_gather_object(found, own)
    return found


def _end_of(path: Path) -> bytes | None:
    """Returns the last bytes of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _DIGEST))
            return file.read()
    except OSError:
        return None
