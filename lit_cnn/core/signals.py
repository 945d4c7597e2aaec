"""The signals that stop a run after a checkpoint, and the one that a process is sent whose parent is gone."""

import ctypes
import os
import signal

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Makes the system send this process TERM when the one that started it is gone."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)
