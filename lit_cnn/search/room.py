"""How many workers a machine has room for, and each one's share of it. Imports nothing heavy: it is asked first."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_cnn.core.errors import UsageError
from lit_cnn.core.files import size_in_words
from lit_cnn.core.ray_cluster import Node
from lit_cnn.core.words import counted

BYTES_OF_WORKER = 600 * 10**6
"""What a process has for itself when it has imported all and trains LeNet-5: 563 MB (RssAnon, torch 2.15)."""

BYTES_ON_GPU = 500 * 10**6
"""What a process takes of a GPU for CUDA itself, before its network: about half a gigabyte on recent ones."""


def gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; does not import torch."""
    if (said := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number, _ in enumerate(Path("/proc/driver/nvidia/gpus").glob("*"))]


def shares(num_workers: int, gpus_there: Sequence[str]) -> list[dict[str, str]]:
    """Returns the environment of each worker: its GPU, and its share of the cores.

    Args:
        num_workers: At least 1.
        gpus_there: Of `gpus`; empty where the search is to use none.
    """
    own = max(1, len(os.sched_getaffinity(0)) // num_workers)
    found = [threads(own) for _ in range(num_workers)]
    for number, of_worker in enumerate(found if gpus_there else []):
        of_worker["CUDA_VISIBLE_DEVICES"] = gpus_there[number % len(gpus_there)]
    return found


def threads(cores: int) -> dict[str, str]:
    """Returns the environment of a worker that has some cores: a thread for each, or as many as the user says."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return {"OMP_NUM_THREADS": str(min(cores, int(said)) if said.isdecimal() and int(said) else cores)}


@dataclass(frozen=True)
class Share:
    """What a worker has of its node.

    Attributes:
        cpus: Whole ones.
        gpus: 0, 1, or a part of one.
    """

    cpus: int
    gpus: float


def share_of(nodes: Sequence[Node], num_workers: int, uses_gpu: bool, most: Sequence[int] | None = None) -> Share:
    """Returns the largest share of a node that so many workers can have each.

    Args:
        nodes: Of a cluster.
        num_workers: At least 1.
        uses_gpu: Whether each is to have a GPU, or a part of one.
        most: How many workers each node has the memory for; None for any number.

    Raises:
        UsageError: With how many there is room for.
    """
    gpus = sum(node.gpus for node in nodes)
    on_each_gpu = -(-num_workers // gpus) if uses_gpu else 0

    def room(cpus: int) -> int:
        """Returns how many workers with so many CPUs there is room for."""
        of_nodes = [min(node.cpus // cpus, node.gpus * on_each_gpu if uses_gpu else node.cpus) for node in nodes]
        return sum(map(min, of_nodes, of_nodes if most is None else most))

    for cpus in range(max(node.cpus for node in nodes), 0, -1):
        if room(cpus) >= num_workers:
            return Share(cpus, 1 / on_each_gpu if uses_gpu else 0)
    there = room(1)
    remedy = f"give {there} or fewer" if there else "free some first"
    if most is None:
        remedy = remedy if there else "start a node that has some"
        has = ", ".join(f"{node.host} has {counted(node.cpus, 'CPU')}" for node in nodes)
        raise UsageError("parallel", num_workers, f"the cluster has no such room: {has}", remedy)
    has = ", ".join(f"{node.host} has room for {number}" for node, number in zip(nodes, most, strict=True))
    raise UsageError("parallel", num_workers, f"each takes at least {size_in_words(BYTES_OF_WORKER)}; {has}", remedy)


def require_memory(num_workers: int, bytes_of_each: int = BYTES_OF_WORKER) -> None:
    """Refuses more workers than there is memory for.

    Args:
        num_workers: How many.
        bytes_of_each: What one takes at least.

    Raises:
        UsageError: With how many there is memory for.
    """
    free = free_memory()
    if num_workers * bytes_of_each <= free:
        return
    most = free // bytes_of_each
    reason = f"takes at least {size_in_words(num_workers * bytes_of_each)} of memory, and {size_in_words(free)} is free"
    raise UsageError("parallel", num_workers, reason, f"give {most} or fewer" if most else "free some memory first")


def require_gpu_memory(
    num_workers: int, gpus_there: Sequence[str], free: Mapping[str, int], bytes_of_each: int = BYTES_ON_GPU
) -> None:
    """Refuses more workers than there is memory for on the GPUs that they share.

    Args:
        num_workers: How many; each has the next GPU, as of `shares`.
        gpus_there: Of `gpus`.
        free: GPU -> free bytes, of `free_on_gpus`; one that is not among them is not judged.
        bytes_of_each: What one takes at least.

    Raises:
        UsageError: With how many there is memory for.
    """
    room = [_of_gpu(name, free) // bytes_of_each for name in gpus_there]

    def fit(number: int) -> bool:
        """Whether so many workers do."""
        return all(len(range(place, number, len(room))) <= most for place, most in enumerate(room))

    if not room or fit(num_workers):
        return
    most = next((number for number in range(num_workers - 1, 0, -1) if fit(number)), 0)
    full = next(
        name for place, name in enumerate(gpus_there) if len(range(place, num_workers, len(room))) > room[place]
    )
    reason = f"each takes at least {size_in_words(bytes_of_each)} of its GPU, and GPU {full} has "
    reason += f"{size_in_words(_of_gpu(full, free))} free"
    raise UsageError("parallel", num_workers, reason, f"give {most} or fewer" if most else "free some memory first")


def _of_gpu(name: str, free: Mapping[str, int]) -> int:
    """Returns the free bytes of a GPU by its index or the beginning of its UUID; endless where they are not known."""
    known = [there for of, there in free.items() if of == name or (name.startswith("GPU-") and of.startswith(name))]
    return known[0] if known else sys.maxsize


def free_on_gpus() -> dict[str, int]:
    """Returns the free bytes of each GPU, by its index and by its UUID; empty where nvidia-smi does not tell."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return free_in(said)


def free_in(said: str) -> dict[str, int]:
    """Returns the same from the lines of nvidia-smi: `0, GPU-5c1…, 143000`, in MiB; what is no number is left out."""
    found = dict[str, int]()
    for line in said.splitlines():
        index, uuid, free = (part.strip() for part in line.split(","))
        if free.isdecimal():
            found |= {index: int(free) << 20, uuid: int(free) << 20}
    return found


def free_memory() -> int:
    """Returns the bytes that processes can have more of: the machine's, or those of the control group's limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder, limit, used in (
        ("/sys/fs/cgroup", "memory.max", "memory.current"),
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        group = Path(folder)
        if (group / limit).is_file() and (text := (group / limit).read_text(encoding="ascii").strip()).isdecimal():
            taken = int((group / used).read_text(encoding="ascii")) - _cached(group / "memory.stat")
            free = min(free, max(0, int(text) - taken))
    return free


def _cached(statistics: Path) -> int:
    """Returns the bytes of a control group that are only what was read of files, and makes way."""
    pairs = (line.split() for line in statistics.read_text(encoding="ascii").splitlines())
    return next((int(value) for name, value in pairs if name == "inactive_file"), 0)
