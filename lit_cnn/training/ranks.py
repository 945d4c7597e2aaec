"""The processes of one run: how they meet, take over what the first one decides, and end together.

Where Lightning starts the other processes by the same command (`ddp` from one command), they are started here, before
anything is decided, rather than in the midst of `Trainer.fit`: from there on they are as those of torchrun or srun.
`ddp_spawn` and its like start them with all that is decided; to them this module is nothing.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from lit_cnn.core.environment import number_said
from lit_cnn.core.errors import UsageError
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.launchers import leave_it_to_first
from lit_cnn.training.lifeline import Lifeline, connect
from lit_cnn.training.process import RunFailedError

Made = TypeVar("Made")
PathOrNone = TypeVar("PathOrNone", Path, Path | None)

_CHUNK = 1 << 26  # bytes of a file that are sent at once
_DIGEST = 71  # bytes at a checkpoint's end that tell it from others: see lit_cnn.training.checkpoints
_SAY_AFTER = 10.0  # seconds
_STARTED_BY = "LIT_CNN_STARTED_BY"  # number of the process that started the others of its host


class Ranks:
    """The processes of a run.

    Where this process starts the others, on its own host, it does so when nothing refuses the run any more (`meet`).
    What was decided until then, they hear as they come.

    Attributes:
        strategy: Lightning's; None where there is one process only.
        lifeline: Which tells that one is gone; None until they have met.
    """

    def __init__(self, strategy: Any = None) -> None:
        """Takes the processes of a strategy; by default there is one."""
        self.strategy = strategy
        self.lifeline: Lifeline | None = None
        self._said: list[Any] | None = None  # by a first process that is to start the others
        self._to_hear: list[Any] = []  # that was said before this process was there
        self._have_ended = False
        if not self.are_several:
            return
        if _starts_all(strategy):
            self._said = []
        else:
            self.meet()

    @property
    def are_several(self) -> bool:
        """Whether there are others."""
        return self.strategy is not None and self.strategy.world_size > 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and writes."""
        return self.strategy is None or self.strategy.global_rank == 0

    def meet(self) -> None:
        """Meets the others, starts them where that is this process's; does nothing where they have met.

        Raises:
            UsageError: If they cannot find each other.
            RunFailedError: If one does not come.
        """
        if not self.are_several or self.lifeline is not None:
            return
        if not self.strategy.cluster_environment.creates_processes_externally:
            os.environ[_STARTED_BY] = str(os.getpid())
            self.strategy.launcher._call_children_scripts()
            del os.environ[_STARTED_BY]
        with _meeting(self.strategy):
            self.strategy.setup_environment()
        self.lifeline = connect(self.strategy)
        self._to_hear = self.strategy.broadcast(self._said or [])
        if self._said is not None:
            self._to_hear, self._said = [], None

    def from_first(self, make: Callable[[], Made]) -> Made:
        """Returns, in all processes, what the first one makes.

        All processes are to call this, `from_each` and `file_of_first` in the same order within `ending_together`.
        """
        if self._to_hear:
            return self._to_hear.pop(0)
        made = make() if self.is_first else None
        if self._said is not None:
            self._said.append(made)
        elif self.are_several:
            self._share(None)
            made = self.strategy.broadcast(made)
        return made  # type: ignore[return-value]

    def from_each(self, own: Made) -> list[Made]:
        """Returns, in all processes, what each of them has, in the order of ranks.

        Those that this process starts are on its host: what they have is the same.
        """
        if self._to_hear:
            return self._to_hear.pop(0)
        if self._said is not None:
            self._said.append([own])
            return [own]
        if not self.are_several:
            return [own]
        self._share(None)
        return _gathered(own, self.strategy.world_size)

    def file_of_first(self, find: Callable[[], PathOrNone]) -> PathOrNone:
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
        copy = None if self.is_first else _new_folder() / path.name
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
            if self.lifeline is not None and not self._have_ended and not self._to_hear:
                self._share(error)
            raise
        if self.are_several:
            self._share(None)

    def close(self, error: BaseException | None = None) -> None:
        """Parts with the others at the end of a run, or where this process fails; those end then too."""
        agreed = error is None or (isinstance(error, RunInterrupted) and not error.at_once)
        if self.lifeline is not None:
            self.lifeline.close("" if agreed else " ".join(str(error).split()) or type(error).__name__)

    def let_end(self) -> None:
        """Says that the run is ending by itself, whichever process is gone."""
        if self.lifeline is not None:
            self.lifeline.let_end()

    def gone(self) -> str:
        """Returns which process is gone, a moment after an exchange failed; "" if none is."""
        return (self.lifeline.lost() if self.lifeline is not None else None) or ""

    def _share(self, error: Exception | None) -> None:
        """Tells the others of an error, or hears of theirs."""
        if self._to_hear:
            self._to_hear.pop(0)
            return
        if self._said is not None:
            self._said.append(None)
            return
        told = None
        if error is not None:
            told = error if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
        try:
            errors = _gathered((told, socket.gethostname()), self.strategy.world_size)
        except RuntimeError as failure:
            self._have_ended = True
            self.let_end()
            raise RunFailedError(f"{self.gone() or 'another process ended'}; nothing is trained") from failure
        found = [(rank, *each) for rank, each in enumerate(errors) if each[0] is not None]
        self._have_ended = bool(found)
        if not found or (error is not None and (self.is_first or not isinstance(error, UsageError))):
            return
        if not self.is_first:
            self.close()
            leave_it_to_first()
        rank, other, host = found[0]
        if not isinstance(other, UsageError):
            raise RunFailedError(f"process {rank} on {host}: {other}")
        raise UsageError(other.option, other.value, f"process {rank} on {host}: {other.reason}", other.remedy)


def join(trainer: Trainer) -> Ranks:
    """Returns the processes of a trainer's run: they have met, or will where this one is to start the others.

    Raises:
        UsageError: If as many processes were started as the trainer does not want, or they cannot find each other.
        RunFailedError: If one does not come.
    """
    if not isinstance(trainer.strategy.launcher, _SubprocessScriptLauncher):
        return Ranks()
    _require_as_many(trainer.strategy)
    _require_meeting_place(trainer.strategy)
    return Ranks(trainer.strategy)


def _starts_all(strategy: Any) -> bool:
    """Whether this process is to start all others."""
    return strategy.num_nodes == 1 and not strategy.cluster_environment.creates_processes_externally


@contextlib.contextmanager
def _meeting(strategy: Any) -> Iterator[None]:
    """Waits for the other processes of a run, as long as it makes sense; INT ends it as TERM does.

    Python's own handler of INT would wait until they have come.
    """
    environment, began, has_met = strategy.cluster_environment, time.monotonic(), threading.Event()
    place = f"{environment.main_address}:{environment.main_port}"
    starter = number_said(_STARTED_BY)
    os.environ.pop(_STARTED_BY, None)  # it is no one's who is started later

    def watch() -> None:
        """Ends the process where the others will not come, and says after a while that it waits."""
        has_said = False
        while not has_met.wait(0.2):
            if starter not in (None, os.getppid()):
                os._exit(1)  # who started this process is gone
            if any(child.poll() is not None for child in strategy.launcher.procs):
                line = "a process of this run ended before the run began: see above"
                print(f"lit-cnn: error: {line}", file=sys.stderr, flush=True)
                os._exit(1)
            if not has_said and time.monotonic() - began > _SAY_AFTER and not strategy.launcher.procs:
                has_said = True
                line = f"process {strategy.global_rank} of {strategy.world_size} waits for the others at {place}"
                print(f"lit-cnn: {line}", file=sys.stderr, flush=True)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, signal.SIG_DFL) if is_main else None
    try:
        yield
    except RuntimeError as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunFailedError(f"the processes of this run did not meet at {place}: {first}") from error
    finally:
        if is_main:
            signal.signal(signal.SIGINT, before)
        has_met.set()
        watcher.join()


def _require_as_many(strategy: Any) -> None:
    """Refuses other numbers of processes than the trainer wants."""
    environment, nodes, devices = strategy.cluster_environment, strategy.num_nodes, strategy.num_processes
    try:
        environment.validate_settings(num_devices=devices, num_nodes=nodes)
        if not isinstance(environment, SLURMEnvironment) or environment.world_size() == nodes * devices:
            return
        reason = f"{environment.world_size()} processes were started for {nodes} x {devices} devices"
    except ValueError as error:
        reason = " ".join(str(error).split())
    if strategy.global_rank > 0:
        leave_it_to_first()
    remedy = "start one process a device, with `num_nodes` hosts of `devices` each"
    raise UsageError("devices", devices, reason, remedy)


def _require_meeting_place(strategy: Any) -> None:
    """Refuses processes of Lightning's own that would each wait for the others at an address of their own."""
    environment, nodes = strategy.cluster_environment, strategy.num_nodes
    is_started = environment.creates_processes_externally  # LOCAL_RANK says so
    if not isinstance(environment, LightningEnvironment) or strategy.world_size == 1 or not (nodes > 1 or is_started):
        return
    names = ["MASTER_ADDR", "MASTER_PORT", "NODE_RANK"] if nodes > 1 else ["MASTER_PORT"]
    reason = ", ".join(name for name in names if name not in os.environ)
    reason += " not in the environment" if reason else ""
    if strategy.local_rank >= strategy.num_processes:
        reason = f"LOCAL_RANK is {strategy.local_rank} in the environment, of {strategy.num_processes} devices a host"
    if reason:
        remedy = "set what Lightning reads there, on every host, or start with torchrun or srun"
        if is_started:
            remedy += "; for one command alone, unset LOCAL_RANK"
        option, value = ("num_nodes", nodes) if nodes > 1 else ("devices", strategy.num_processes)
        raise UsageError(option, value, reason, remedy)


def _gathered(own: Any, count: int) -> list[Any]:
    found = [None] * count
    torch.distributed.all_gather_object(found, own)
    return found


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lit_cnn_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _end_of(path: Path) -> tuple[int, bytes] | None:
    """Returns the size and the last bytes of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _DIGEST))
            return size, file.read()
    except OSError:
        return None
