"""`lit-cnn fit --engine ray`: the processes of one run on the machines of a Ray cluster, placed by Ray Train.

Each is the process that torchrun would start: training in a thread of Ray's would lose its signals.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_cnn.cli.configs import split_arguments
from lit_cnn.cli.shorthand import chosen, expand
from lit_cnn.core.errors import UsageError
from lit_cnn.core.ray_cluster import LEAVE_CHILDREN, NODE_LABEL, Node, check_nodes, joined
from lit_cnn.core.signals import handled
from lit_cnn.tracking.nodes import nodes_apart
from lit_cnn.tracking.store import resolve_store

_POLL = 0.3  # seconds
_SAY_AFTER = 30.0  # seconds without a process
_UNTIL_ANSWERED = 30.0  # seconds


def fit_on_ray(arguments: list[str], address: str | None) -> int:
    """Runs `lit-cnn fit` on a cluster; what the run prints is printed here.

    Args:
        arguments: Of `lit-cnn fit`.
        address: Of the cluster; see `joined`.

    Returns:
        The exit code of the first process, or 1 if a process was lost.

    Raises:
        UsageError: If the cluster is not there, or has no place for the run; nothing is started then.
        RunFailedError: If Ray fails.
    """
    layers, options = split_arguments(expand("fit", arguments))
    devices, num_nodes = (_count(name, chosen(layers, options, "trainer", name)) for name in ("devices", "num_nodes"))
    store = resolve_store(chosen(layers, options, "tracking_uri"))
    with joined(address) as nodes:
        wants_gpu = chosen(layers, options, "trainer", "accelerator") in (None, "auto", "gpu", "cuda")
        uses_gpu = wants_gpu and any(node.gpus for node in nodes)
        taken = places(nodes, devices, num_nodes, uses_gpu)
        used = [node for place, node in enumerate(taken) if node not in taken[:place]]
        check_nodes(used, Path.cwd())
        nodes_apart([node for node in used[:1] if not node.is_here], store)
        return _run(arguments, taken, uses_gpu)


def places(nodes: Sequence[Node], devices: int, num_nodes: int, uses_gpu: bool) -> list[Node]:
    """Returns where each process is to run: as many on each machine, on as few machines as have room.

    Args:
        nodes: The machines, the preferred ones first.
        devices: How many processes a host; in all, where `num_nodes` is 1.
        num_nodes: How many hosts.
        uses_gpu: Whether each process takes a GPU rather than a core.

    Raises:
        UsageError: If they have no such room.
    """

    def room(node: Node) -> int:
        return node.gpus if uses_gpu else node.cpus

    spreads = [num_nodes] if num_nodes > 1 else [m for m in range(1, devices + 1) if devices % m == 0]
    for hosts in spreads:
        of_each = devices if num_nodes > 1 else devices // hosts
        fitting = [node for node in nodes if room(node) >= of_each]
        if len(fitting) >= hosts:
            return [node for node in fitting[:hosts] for _ in range(of_each)]
    what = "GPUs" if uses_gpu else "cores"
    there = ", ".join(f"{node.host} has {room(node)}" for node in nodes)
    wanted = (
        f"{num_nodes} nodes with {devices} {what} each" if num_nodes > 1 else f"{devices} {what}, as many on each node"
    )
    raise UsageError("devices", devices, f"the cluster has no {wanted}: {there}", "give fewer")


class Board:
    """What the processes of a run and the one that started it tell each other; lives beside the latter."""

    def __init__(self) -> None:
        self._lines: list[tuple[bool, bytes]] = []
        self._codes: dict[int, int] = {}
        self._signals: list[int] = []
        self._has_begun = False

    def begin(self) -> None:
        """Notes that the processes have their places."""
        self._has_begun = True

    def say(self, is_error: bool, text: bytes) -> None:
        """Takes what a process has printed."""
        self._lines.append((is_error, text))

    def end(self, rank: int, code: int) -> None:
        """Takes the exit code of a process."""
        self._codes[rank] = code

    def news(self) -> tuple[bool, list[tuple[bool, bytes]], dict[int, int]]:
        """Returns whether they have their places, what has been printed since the last call, and the exit codes."""
        lines, self._lines = self._lines, []
        return self._has_begun, lines, self._codes

    def send(self, number: int) -> None:
        """Takes a signal for all processes."""
        self._signals.append(number)

    def signals(self) -> list[int]:
        """Returns all signals."""
        return self._signals


def _run(arguments: Sequence[str], taken: Sequence[Node], uses_gpu: bool) -> int:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0)(Board).options(scheduling_strategy=here).remote()
    of_each = len(taken) // len(set(taken))
    own = [f"--trainer.devices={of_each}", f"--trainer.num_nodes={len(set(taken))}"]
    config = {"arguments": [*arguments, *own], "folder": str(Path.cwd()), "board": board, "environment": _to_pass_on()}
    ended: deque[BaseException | None] = deque()

    def train() -> None:
        try:
            _train(config, taken, of_each, uses_gpu)
        except Exception as error:  # whatever Ray makes of a process that is lost
            ended.append(error)
        else:
            ended.append(None)

    trains = threading.Thread(target=train, daemon=True, name="ray train")
    began, says_wait, sent, codes = time.monotonic(), True, list[int](), dict[int, int]()
    signals: deque[int] = deque()
    with handled(lambda number, frame: signals.append(number)):
        trains.start()
        while True:
            is_over = bool(ended)
            while signals:
                sent.append(signals.popleft())
                board.send.remote(sent[-1])
            try:
                has_begun, lines, codes = ray.get(board.news.remote(), timeout=_UNTIL_ANSWERED)
            except ray.exceptions.RayError as error:  # a signal to all processes of a terminal ends those of Ray too
                if sent:
                    print(f"lit-cnn: stopped by {signal.Signals(sent[-1]).name}", file=sys.stderr)
                    return 128 + sent[-1]
                ended.append(error)
                break
            for is_error, text in lines:
                stream = sys.stderr if is_error else sys.stdout
                stream.buffer.write(text)
                stream.flush()
            if is_over:
                break
            if sent and (not has_begun or len(sent) > 2):
                print(f"lit-cnn: stopped by {signal.Signals(sent[-1]).name}", file=sys.stderr)
                return 128 + sent[-1]
            if says_wait and not has_begun and time.monotonic() - began > _SAY_AFTER:
                says_wait = False
                print(f"lit-cnn: waiting for room on {', '.join(sorted({n.host for n in taken}))}", file=sys.stderr)
            time.sleep(_POLL)
    if len(codes) == len(taken):
        return codes[0]
    print(f"lit-cnn: error: {_lost(taken, ended[0])}; the same command with --resume auto goes on", file=sys.stderr)
    return 1


def _lost(taken: Sequence[Node], error: BaseException | None) -> str:
    """Returns which machines are gone, or else what Ray says."""
    import ray

    alive = {each["NodeID"] for each in ray.nodes() if each["Alive"]}
    if gone := sorted({node.host for node in taken if node.id not in alive}):
        return f"lost with node {' and '.join(gone)}"
    failures = getattr(error, "worker_failures", None) or {0: error}
    return f"ended by Ray ({' '.join(str(next(iter(failures.values()))).split())[:300]})"


def _train(config: Mapping[str, Any], taken: Sequence[Node], of_each: int, uses_gpu: bool) -> None:
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    from ray.train.backend import Backend, BackendConfig
    from ray.train.v2.api.config import RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    class SharedDevices(Backend):
        """Shows each process all GPUs of the run on its machine, as torchrun does: LOCAL_RANK chooses."""

        share_cuda_visible_devices = True

    class Devices(BackendConfig):
        """Of `SharedDevices`."""

        @property
        def backend_cls(self) -> type[Backend]:
            """Returns it."""
            return SharedDevices

    resources: dict[str, float] = {"CPU": max(0, min(node.cpus for node in taken) // of_each)}
    if uses_gpu:
        resources["GPU"] = 1
    folder = tempfile.mkdtemp(prefix="lit_cnn_")
    run_config: Any = RunConfig(name="lit_cnn", storage_path=folder, worker_runtime_env={"env_vars": LEAVE_CHILDREN})
    try:
        DataParallelTrainer(
            run_process,
            train_loop_config=dict(config),
            backend_config=Devices(),
            scaling_config=ScalingConfig(
                num_workers=len(taken),
                use_gpu=uses_gpu,
                resources_per_worker=resources,
                label_selector=[{NODE_LABEL: node.id} for node in taken],
            ),
            run_config=run_config,
        ).fit()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_process(config: Mapping[str, Any]) -> None:
    """Runs one process of the run to its end, as a worker of Ray Train.

    Args:
        config: The arguments, the working directory, the `Board`, and variables of the environment.
    """
    import ray
    import ray.train
    from ray.train.collective import broadcast_from_rank_zero

    context, board = ray.train.get_context(), config["board"]
    rank = context.get_world_rank()
    ray.get(board.begin.remote())
    place = _meeting_place(ray.util.get_node_ip_address()) if rank == 0 else None
    host, port = broadcast_from_rank_zero(place)
    ranks = {
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "GROUP_RANK": context.get_node_rank(),
        "MASTER_ADDR": host,
        "MASTER_PORT": port,
        "TORCHELASTIC_RUN_ID": "ray",
    }
    own = {name: str(value) for name, value in ranks.items()} if context.get_world_size() > 1 else {}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "lit_cnn.cli.ray_process", "fit", *config["arguments"]],
        cwd=config["folder"],
        env={**os.environ, **config["environment"], **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    readers = [
        threading.Thread(target=_tell, args=(board, is_error, stream), daemon=True)
        for is_error, stream in ((False, process.stdout), (True, process.stderr))
    ]
    for reader in readers:
        reader.start()
    num_sent = 0
    while process.poll() is None:
        for number in ray.get(board.signals.remote())[num_sent:]:
            process.send_signal(number)
            num_sent += 1
        time.sleep(_POLL)
    for reader in readers:
        reader.join()
    ray.get(board.end.remote(rank, process.returncode))


def _tell(board: Any, is_error: bool, stream: Any) -> None:
    import ray

    while text := stream.read1(1 << 16):
        ray.get(board.say.remote(is_error, text))


def _meeting_place(host: str) -> tuple[str, int]:
    with socket.socket() as found:
        found.bind((host, 0))
        return host, found.getsockname()[1]


def _to_pass_on() -> dict[str, str]:
    """Returns variables that say where runs and images are kept, and how processes reach one another."""
    names = ("MLFLOW_", "GLOO_", "NCCL_", "OMP_NUM_THREADS")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def _count(option: str, given: Any) -> int:
    if given in (None, "auto"):
        return 1
    if not str(given).isdecimal() or int(str(given)) < 1:
        raise UsageError(option, given, "with `engine=ray`, give how many")
    return int(str(given))
