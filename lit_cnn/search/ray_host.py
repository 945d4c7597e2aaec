"""What runs on a node of a Ray cluster for a worker there: its process, and the way to it. Imports nothing heavy.

The worker is a process of its own, as signals reach no thread, and Ray ends its own processes without a word. It gets
TERM when Ray's process is gone, whatever ended that: the search's end, its being killed, the node's leaving the
cluster. Then it ends after a checkpoint.
"""

import json
import os
import socket
import subprocess
import sys
from multiprocessing import connection
from pathlib import Path
from typing import Any

_UNTIL_KILLED = 10.0  # seconds between the end of what a worker says, and its own


class Host:
    """Starts a worker and passes on what it says and is told: the actor of Ray that has the worker's share.

    Args:
        order: JSON: the module that the worker runs, its folder, and its environment besides that of the node.
    """

    def __init__(self, order: str) -> None:
        ordered: dict[str, Any] = json.loads(order)
        mine, theirs = socket.socketpair()
        command = [sys.executable, "-P", "-m", ordered["module"]]
        package = str(Path(__file__).resolve().parents[2])
        paths = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": paths, **ordered["environment"]}
        with theirs:
            # The main thread's: the system tells a process of the end of the thread that has started it.
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), cwd=ordered["folder"], env=environment, start_new_session=True
            )
        self._link = connection.Connection(mine.detach())

    def where(self) -> tuple[str, str]:
        """Returns the node on which it runs: Ray's id of it, and its address."""
        import ray

        return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()

    def exchange(self, answer: str | None) -> str:
        """Returns what the worker says next, and its exit code at its end; tells it the answer to what it said last."""
        try:
            if answer is not None:
                self._link.send_bytes(answer.encode())
            return self._link.recv_bytes().decode()
        except (EOFError, OSError):
            return json.dumps({"exit_code": self._wait()})

    def stop(self) -> None:
        """Ends the worker after a checkpoint."""
        self._process.terminate()

    def end(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()

    def _wait(self) -> int:
        try:
            return self._process.wait(_UNTIL_KILLED)
        except subprocess.TimeoutExpired:
            self.end()
            return self._process.returncode
