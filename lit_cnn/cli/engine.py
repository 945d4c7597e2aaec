"""What the workers of a search run on: processes of this machine, or of the nodes of a Ray cluster."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lit_cnn.cli.precheck import value_of
from lit_cnn.core.errors import UsageError
from lit_cnn.core.ray_cluster import joined
from lit_cnn.search.room import free_on_gpus, gpus, require_gpu_memory, require_memory, shares
from lit_cnn.tracking.store import resolve_store

if TYPE_CHECKING:
    from lit_cnn.search.crew import Engine

_WORKER = "lit_cnn.cli.tune_worker"


@contextlib.contextmanager
def engine_of(name: str | None, address: str | None, parallel: int | None, of_fit: Sequence[str]) -> Iterator["Engine"]:
    """Yields what the workers of a search are started by; imports what they need here in the meantime.

    Args:
        name: `ray`, or None for this machine.
        address: Of the cluster; see `joined`.
        parallel: How many workers, if it is given.
        of_fit: Options of `lit-cnn fit` for all trials.

    Raises:
        UsageError: If there is no room for so many, or no such cluster, or one of its nodes cannot train them.
    """
    uses_gpu = value_of(of_fit, "trainer.accelerator") != "cpu"
    if name is None:
        if address is not None:
            raise UsageError("address", address, "is that of a Ray cluster", "give `engine=ray` too")
        there = gpus() if uses_gpu else []
        num_workers = parallel or max(1, len(there))
        require_memory(num_workers)
        if there:
            require_gpu_memory(num_workers, there, free_on_gpus())
        _start_sender()
        from lit_cnn.search.processes import Processes

        yield Processes(_WORKER, shares(num_workers, there))
        return
    with joined(address) as nodes:
        _start_sender()
        from lit_cnn.search.ray_engine import ray_nodes

        store = resolve_store(value_of(of_fit, "tracking_uri"))
        yield ray_nodes(nodes, _WORKER, parallel, uses_gpu, store)


def _start_sender() -> None:
    from lit_cnn.tracking.supervisor import start_early

    start_early()
