"""A worker of `lit-cnn tune`: started by the search, which it asks what to train over its standard input.

python -m lit_cnn.cli.tune_worker
"""

from lit_cnn.cli.spelling import spelling_of
from lit_cnn.core.environment import set_environment
from lit_cnn.core.errors import spelling_printed
from lit_cnn.core.late_imports import postpone_imports
from lit_cnn.core.memory import keep_freed_memory
from lit_cnn.core.signals import end_with_parent


def main() -> None:
    """Trains until the search has nothing left; see the module's docstring."""
    set_environment()
    postpone_imports()
    keep_freed_memory()
    end_with_parent()
    from lit_cnn.cli.lit_cli import LitCLI
    from lit_cnn.search.processes import PipeLink
    from lit_cnn.search.worker import work
    from lit_cnn.training.callbacks import RunInterrupted
    from lit_cnn.training.process import hush_lightning

    hush_lightning()
    spelling = spelling_of("fit")
    try:
        with spelling_printed(spelling):
            link = PipeLink(lambda arguments: LitCLI("fit", arguments).setup.data.digests["data"])
            work(link, lambda arguments: LitCLI("fit", arguments).setup, spelling)
    except (RunInterrupted, EOFError, ConnectionError):
        pass  # the search has been stopped, or is gone: what was begun can be gone on with


if __name__ == "__main__":
    main()
