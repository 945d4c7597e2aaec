"""The process around a run: which of several it is, what it does at a signal, which advice and failures it tells of."""

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_cnn.core.errors import UsageError, in_python, spelt
from lit_cnn.core.files import CANNOT_WRITE, size_in_words
from lit_cnn.core.signals import STOPPING, handled
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.callbacks import RunCheckpoints, RunInterrupted
from lit_cnn.training.checkpoints import size_of
from lit_cnn.training.classifier import LitClassifier

GO_ON = "what was saved before is whole: the same again with `resume=auto` goes on"
_UNTIL_HEARD = 3.0  # seconds in which Python's own handler of a second signal should have run


def is_first_process() -> bool:
    """Tells whether this is the process of a distributed run that writes; true where there is only one."""
    return getattr(rank_zero_only, "rank", 0) in (0, None)


def hush_lightning() -> None:
    """Keeps Lightning's banner and advertisements away; its warnings stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keeps away advice that does not apply: loaders without workers and frozen layers are chosen, not forgotten."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*dataloader is not resumable.*")
        warnings.filterwarnings("ignore", message=".*worker processes in total.*")
        warnings.filterwarnings("ignore", message=".*recommended to use .*sync_dist=True.*")
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        # The tuner of --find_batch_size restores what was before there was an average.
        warnings.filterwarnings("ignore", message=".*was not created with WeightAveraging.*")
        # A checkpoint that Lightning's own callback wrote is read without that callback.
        warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need to be provided.*")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


class RunFailedError(Exception):
    """A run ended early for a reason outside of it; the message is one line, the exit code of `lit-cnn` 1."""

    def __str__(self) -> str:
        return spelt(self.args[0], in_python)


@contextmanager
def failures_in_words(batch_size: int, gone: Callable[[], str] = str) -> Iterator[None]:
    """Turns a full disk, a full memory and a lost host into one line that says what is safe and what to do.

    Args:
        batch_size: That of the data module.
        gone: Says which other process of the run is gone; "" if none is.

    Raises:
        RunFailedError: In place of the system's own errors.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        reason = f"{error.strerror or os.strerror(error.errno)}{notes_of(error)}"
        raise RunFailedError(
            f"{error.filename or 'writing'}: {reason}; what was saved before is whole: make room (lit-cnn gc), then "
            "the same again with `resume=auto` goes on"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            if lost := gone():  # by which an exchange with it has failed
                raise RunFailedError(f"{lost}; {GO_ON}") from error
            raise
        mistake = too_large(batch_size)
        raise RunFailedError(f"`batch_size={batch_size}`: {mistake.reason}; {mistake.remedy}") from error


def too_large(batch_size: int) -> UsageError:
    """Returns the mistake of a batch size for which the memory is too small."""
    remedy = "give a smaller one, with `accumulate_grad_batches=2` for the same steps, or ask for the largest"
    reason = "a batch does not fit into memory"
    return UsageError("batch_size", batch_size, reason, f"{remedy}: lit-cnn fit --find_batch_size true")


def notes_of(error: BaseException) -> str:
    """Returns what was noted on the way about what is not stored: `; …` for each note."""
    return "".join(f"; {note}" for note in getattr(error, "__notes__", ()))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU's or this machine's memory was too small for what was asked of it."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def require_room(folder: Path, model: LitClassifier, averages: bool, snapshots: int) -> None:
    """Refuses to begin where the run's checkpoints will not fit: two last ones for a moment, the best, the snapshots.

    Args:
        folder: Where they go; need not be there yet.
        model: The network; what it trains has two more numbers for each weight, as AdamW's.
        averages: Whether the last ones hold an average of the weights besides.
        snapshots: How many are still to come.

    Raises:
        UsageError: With the room there is and the room it takes.
    """
    weights = size_of(model.state_dict())
    trained = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    needed = 2 * (weights * (1 + averages) + 2 * trained) + weights * (1 + max(0, snapshots))
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < needed:
        reason = f"{place} has room for {size_in_words(free)}, and this run's checkpoints take {size_in_words(needed)}"
        raise UsageError("tracking_uri", None, reason, "make room (lit-cnn gc), or give another place")


def find_batch_size(trainer: Trainer, model: LitClassifier, datamodule: ImageDataModule) -> tuple[int, bool]:
    """Returns the largest power of two, times the data's batch size, that trains without running out of memory.

    It is Lightning's tuner that tries; nothing is tracked, and nothing is trained that stays.

    Returns:
        The size, and whether the training set has no more images.
    """
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        # Where the tuner keeps the weights meanwhile.
        trainer._default_root_dir = folder  # type: ignore[attr-defined]
        size = Tuner(trainer).scale_batch_size(model, datamodule=datamodule, mode="power", steps_per_trial=3)
    assert size is not None
    return size, size >= len(datamodule.splits.train)


@contextmanager
def signals_stop(
    trainer: Trainer, checkpoints: RunCheckpoints, at_end: Callable[[int], None] = lambda number: None
) -> Iterator[None]:
    """Turns INT, TERM, HUP and USR1 into a stop between two steps; a second one stops at once.

    USR1 is how SLURM announces (`--signal=USR1@60`) that TERM will follow: that TERM changes nothing.

    Args:
        trainer: Of the run.
        checkpoints: Those who stop it.
        at_end: Called from another thread, before a second signal ends a process that does not hear of it: one that
            waits for another process. Given the signal, it is to record how the run ended.
    """
    # Lightning's own handler of TERM ends the run by SystemExit, with exit code 0, where its loops notice it before we
    # do; with several processes it talks to the others in the midst of whatever they are exchanging.
    trainer._signal_connector.register_signal_handlers = _register_nothing  # type: ignore[method-assign]
    received: list[int] = []  # by this process; what another one of the run received is no second signal
    heard = threading.Event()

    def stop(signal_number: int, frame: Any) -> None:
        """Notes the first signal for the next step's end; ends the run at once at a second one."""
        if _is_second(received, signal_number):
            heard.set()
            raise RunInterrupted(signal_number, at_once=True)
        received.append(signal_number)
        checkpoints.signal_number = signal_number

    def end_unheard(signal_number: int) -> None:
        """Ends the process where its main thread does not hear of the second signal."""
        if not heard.wait(_UNTIL_HEARD):
            with suppress(Exception):
                at_end(signal_number)
            name = signal.Signals(signal_number).name
            print(f"lit-cnn: stopped by {name}; the same command with --resume auto goes on", file=sys.stderr)
            os._exit(128 + signal_number)

    with handled(stop), _second_signal_noticed(end_unheard):
        yield


@contextmanager
def _second_signal_noticed(then: Callable[[int], None]) -> Iterator[None]:
    """Calls a function from another thread at a second signal: Python's handlers wait until PyTorch has returned."""
    woken, wake = socket.socketpair()
    wake.setblocking(False)

    def watch() -> None:
        """Reads the numbers of signals until the other end is shut down."""
        seen: list[int] = []
        while numbers := woken.recv(1):
            if numbers[0] in STOPPING:
                if _is_second(seen, numbers[0]):
                    then(numbers[0])
                seen.append(numbers[0])

    before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=watch, daemon=True, name="second signal")
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        wake.shutdown(socket.SHUT_RDWR)  # to close it is not enough: loader processes that are still there have it too
        watcher.join()
        wake.close()
        woken.close()


def _is_second(received: Sequence[int], number: int) -> bool:
    return bool(received) and (received[-1], number) != (signal.SIGUSR1, signal.SIGTERM)


def _register_nothing() -> None:
    """Takes the place of Lightning's own; a function with a name, as `ddp_spawn` pickles the trainer."""
