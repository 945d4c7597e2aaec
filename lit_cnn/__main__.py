"""`python -m lit_cnn` is the `lit-cnn` command."""

import sys

from lit_cnn.cli import run

if __name__ == "__main__":
    sys.exit(run())
