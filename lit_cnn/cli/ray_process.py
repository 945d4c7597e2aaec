"""A process of `lit-cnn fit --engine ray`: the command itself, which ends with the process of Ray that started it.

python -m lit_cnn.cli.ray_process fit ARGUMENTS…
"""

import signal
import sys

from lit_cnn.cli import main
from lit_cnn.core.signals import STOPPING, end_with_parent


def run() -> int:
    """Runs the command, and returns its exit code."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)  # what Ray's workers block
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)  # and ignore
    end_with_parent()
    return main()


if __name__ == "__main__":
    sys.exit(run())
