"""Workers on the nodes of a Ray cluster, each with an actor that has its share of a node.

What an actor says next is a future, and the search's process waits for all of them: nothing is asked by the workers,
and nothing is left that would have to be found again. Ray ends the actors when the search's process is gone.
"""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_cnn.core.ray_cluster import LEAVE_CHILDREN, Node, check_nodes, on_each
from lit_cnn.core.words import counted
from lit_cnn.search.crew import Gone
from lit_cnn.search.processes import how_ended
from lit_cnn.search.ray_host import Host
from lit_cnn.search.room import BYTES_OF_WORKER, Share, free_memory, share_of, threads
from lit_cnn.tracking.nodes import nodes_apart
from lit_cnn.tracking.store import Store

_SAY_AFTER = 20.0  # seconds without room for a worker
_UNTIL_ENDED = 5.0  # seconds that nodes have to end their workers
_UNTIL_TOLD = 60.0  # seconds in which the cluster notes that a node is gone


class _OnNode:
    """A worker, by the actor that has started it."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.node_id, self.host = "", ""  # known when it has its place
        self.said: Any = actor.where.remote()
        self.began: float | None = time.monotonic()
        self.in_doubt: float | None = None  # since when Ray does not know whether it lives

    def ask_again(self) -> None:
        """Asks whether it still lives; what it was told last may never have come there."""
        self.in_doubt = self.in_doubt or time.monotonic()
        self.said = self._actor.where.remote()

    def send(self, answer: str | None) -> None:
        """Answers; that it is gone is heard next."""
        self.said = self._actor.exchange.remote(answer)

    def stop(self) -> None:
        """Ends it after a checkpoint."""
        self._actor.stop.remote()

    def end(self) -> Any:
        """Begins to end it at once; returns the future of that."""
        return self._actor.end.remote() if self.host else None

    def kill(self) -> None:
        """Ends the actor."""
        import ray

        ray.kill(self._actor)


class RayNodes:
    """Starts workers on the nodes of the cluster that this process has joined.

    Args:
        module: What a worker runs: it calls `PipeLink`.
        num_workers: How many.
        share: What each has of its node.
        environment: Of each worker, besides that of the node.
        spreads: Whether there are other nodes than this one.
        sends_elsewhere: Whether there is one that does not see the folder where runs are kept here.
    """

    def __init__(
        self,
        module: str,
        num_workers: int,
        share: Share,
        environment: Mapping[str, str],
        spreads: bool,
        sends_elsewhere: bool,
    ) -> None:
        import ray

        self._order = json.dumps({"module": module, "folder": os.getcwd(), "environment": dict(environment)})
        self._share = share
        self._here = ray.get_runtime_context().get_node_id()
        self.num_workers = num_workers
        self.spreads = spreads
        self.sends_elsewhere = sends_elsewhere

    def start(self, number: int) -> _OnNode:
        """Starts a worker, as soon as a node has room for it."""
        import ray

        options = {
            "num_cpus": self._share.cpus,
            "num_gpus": self._share.gpus,
            "memory": BYTES_OF_WORKER,
            "max_concurrency": 2,  # it is stopped while it waits for what the worker says
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": LEAVE_CHILDREN},
        }
        return _OnNode(ray.remote(Host).options(**options).remote(self._order))

    def hear(self, workers: Sequence[_OnNode], seconds: float) -> list[tuple[_OnNode, str | Gone]]:
        """Returns what workers say within some seconds."""
        import ray

        speaking = {worker.said: worker for worker in workers if worker.said is not None}
        if not speaking:
            time.sleep(seconds)
            return []
        said, _ = ray.wait(list(speaking), timeout=seconds)
        heard = [(speaking[each], self._heard(speaking[each])) for each in said]
        _say_waiting(workers)
        return [(worker, what) for worker, what in heard if what is not None]

    def elsewhere(self, worker: _OnNode) -> str:
        """Returns the address of a worker's node; "" on this one."""
        return "" if worker.node_id == self._here else worker.host

    def close(self, workers: Sequence[_OnNode]) -> None:
        """Ends workers at once."""
        import ray

        if ending := [each for each in (worker.end() for worker in workers) if each is not None]:
            ray.wait(ending, num_returns=len(ending), timeout=_UNTIL_ENDED)
        for worker in workers:
            worker.kill()

    def _heard(self, worker: _OnNode) -> str | Gone | None:
        import ray

        said, worker.said = worker.said, None
        try:
            what = ray.get(said)
        except ray.exceptions.ActorUnavailableError as error:
            if worker.in_doubt is None or time.monotonic() - worker.in_doubt < _UNTIL_TOLD:
                time.sleep(0.1)
                worker.ask_again()
                return None
            return self._gone(worker, error)
        except ray.exceptions.RayError as error:
            return self._gone(worker, error)
        if worker.in_doubt is not None:
            worker.kill()
            return Gone(f"cut off for {time.monotonic() - worker.in_doubt:.0f} s on {worker.host}", is_its_own=False)
        if worker.began is not None:
            worker.began = None
            worker.node_id, worker.host = what
            worker.send(None)
            return None
        if "exit_code" in (message := json.loads(what)):
            worker.kill()
            return Gone(f"{how_ended(message['exit_code'])} on {worker.host}")
        return str(what)

    def _gone(self, worker: _OnNode, error: Exception) -> Gone:
        """Returns how a worker has ended whose actor has."""
        import ray

        worker.kill()
        if worker.host and not any(each["NodeID"] == worker.node_id and each["Alive"] for each in ray.nodes()):
            return Gone(f"lost with node {worker.host}", is_its_own=False)
        where = f" on {worker.host}" if worker.host else ""
        return Gone(f"ended by Ray{where} ({' '.join(str(error).split())[:200]})")


def _say_waiting(workers: Sequence[_OnNode]) -> None:
    waiting = [each for each in workers if each.began is not None and time.monotonic() - each.began > _SAY_AFTER]
    if waiting:
        for each in waiting:
            each.began = float("inf")  # said once
        there = len(workers) - sum(each.began is not None for each in workers)
        line = f"{counted(len(waiting), 'worker')} of {len(workers)}: no room in the cluster yet; {there} at work"
        print(line, file=sys.stderr, flush=True)


def ray_nodes(nodes: Sequence[Node], module: str, num_workers: int | None, uses_gpu: bool, store: Store) -> RayNodes:
    """Returns workers on the nodes of the cluster that this process has joined.

    Args:
        nodes: Those of the cluster.
        module: See `RayNodes`.
        num_workers: How many; None for one a GPU, or else one a node.
        uses_gpu: Whether workers are to have GPUs, where there are any.
        store: Where runs are kept.

    Raises:
        UsageError: If the nodes have not so many CPUs, or not the memory; if one has other versions, lacks the working
            directory, or can neither see the folder of the runs nor send them.
    """
    gpus = sum(node.gpus for node in nodes) if uses_gpu else 0
    number = num_workers or gpus or max(1, sum(node.cpus > 0 for node in nodes))
    share_of(nodes, number, gpus > 0)
    others = [node for node in nodes if not node.is_here and node.cpus]
    check_nodes(others, Path.cwd())
    apart = nodes_apart(others, store)
    free = [0 if isinstance(each, Exception) else each // BYTES_OF_WORKER for each in on_each(nodes, free_memory)]
    share = share_of(nodes, number, gpus > 0, free)
    passed_on = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    return RayNodes(module, number, share, {**passed_on, **threads(share.cpus)}, bool(others), bool(apart))
