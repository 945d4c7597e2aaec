"""The signals that stop a run after a checkpoint, and the one that a process is sent whose parent is gone."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

_PR_SET_PDEATHSIG = 1


@contextmanager
def handled(handler: Callable[[int, Any], None], numbers: Sequence[int] = STOPPING) -> Iterator[None]:
    """Gives signals to a handler for as long as the block lasts; then they have those of before again.

    Args:
        handler: Called with a signal's number and the frame that it interrupted.
        numbers: Of the signals.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)


def end_with_parent() -> None:
    """Makes the system send this process TERM when the one that started it is gone."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
