"""The process around a run: which of several it is, what it does at a signal, which advice it passes on."""

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lit_cnn.callbacks import RunCheckpoints, RunInterrupted


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
        warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
        yield


@contextmanager
def signals_stop(checkpoints: RunCheckpoints) -> Iterator[None]:
    """Turns INT, TERM and HUP into a stop between two steps; a second one stops at once."""

    def stop(signal_number: int, frame: Any) -> None:
        if checkpoints.signal_number is not None:
            raise RunInterrupted(signal_number)
        checkpoints.signal_number = signal_number

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
