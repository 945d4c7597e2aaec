"""How many workers a machine has room for, and each one's share."""

import os

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.core.ray_cluster import Node
from lit_cnn.search.room import (
    Share,
    free_in,
    free_memory,
    free_on_gpus,
    gpus,
    require_gpu_memory,
    require_memory,
    share_of,
    shares,
)


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert shares(1, []) == [{"OMP_NUM_THREADS": str(cores)}]
    assert shares(2 * cores, []) == [{"OMP_NUM_THREADS": "1"}] * 2 * cores
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # who has said so means it
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-7")
    assert gpus() == ["2", "GPU-7"]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares(3, gpus())] == ["2", "GPU-7", "2"]
    assert {share["OMP_NUM_THREADS"] for share in shares(3, gpus())} == {"1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert gpus() == []


def test_more_workers_than_there_is_memory_for_are_refused() -> None:
    free = free_memory()
    assert 10**8 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    require_memory(1, free // 4)
    with pytest.raises(UsageError, match=r"parallel=40: takes at least .* of memory, and .* is free; give [34] or"):
        require_memory(40, free // 4)
    with pytest.raises(UsageError, match="is free; free some memory first"):
        require_memory(1, 2 * free)


def nodes(*of_each: tuple[int, int]) -> list[Node]:
    return [Node(f"id{n}", f"10.0.0.{n}", cpus, gpus, n == 1) for n, (cpus, gpus) in enumerate(of_each, start=1)]


@pytest.mark.parametrize(
    ("of_each", "num_workers", "uses_gpu", "expected"),
    [
        ([(8, 0), (8, 0)], 2, False, Share(8, 0)),
        ([(8, 0), (8, 0)], 3, False, Share(4, 0)),
        ([(8, 0), (2, 0)], 5, False, Share(2, 0)),
        ([(0, 0), (4, 0)], 4, False, Share(1, 0)),  # a head that is to train nothing
        ([(8, 2), (8, 1)], 3, True, Share(4, 1)),
        ([(8, 1), (8, 1)], 4, True, Share(4, 0.5)),
        ([(8, 0), (8, 1)], 1, True, Share(8, 1)),
        ([(4, 2)], 2, False, Share(2, 0)),
    ],
)
def test_each_worker_has_the_largest_share_that_leaves_room_for_all(
    of_each: list[tuple[int, int]], num_workers: int, uses_gpu: bool, expected: Share
) -> None:
    assert share_of(nodes(*of_each), num_workers, uses_gpu) == expected


def test_workers_without_room_in_a_cluster_are_refused() -> None:
    with pytest.raises(UsageError) as told:
        share_of(nodes((1, 0), (2, 0)), 4, uses_gpu=False)
    has = "10.0.0.1 has 1 CPU, 10.0.0.2 has 2 CPUs"
    assert str(told.value) == f"parallel=4: the cluster has no such room: {has}; give 3 or fewer"
    with pytest.raises(UsageError, match=r"each takes at least 600.0 MB; 10.0.0.1 has room for 1; give 1 or fewer"):
        share_of(nodes((8, 0)), 2, uses_gpu=False, most=[1])
    with pytest.raises(UsageError, match="room for 0; free some first"):
        share_of(nodes((8, 0)), 1, uses_gpu=False, most=[0])
    with pytest.raises(UsageError, match=r"10.0.0.1 has 0 CPUs; start a node"):
        share_of(nodes((0, 0)), 1, uses_gpu=False)


def test_more_workers_than_there_is_memory_for_on_their_gpus_are_refused() -> None:
    free = free_in("0, GPU-5c1a, 2000\n1, GPU-7d, 900\n2, GPU-9, [N/A]\n")
    assert free == {"0": 2000 << 20, "GPU-5c1a": 2000 << 20, "1": 900 << 20, "GPU-7d": 900 << 20}
    half = 500 << 20
    require_gpu_memory(4, ["0"], free, half)
    require_gpu_memory(40, [], free, half)
    require_gpu_memory(40, ["2"], free, half)  # it is not known
    words = r"parallel={}: each takes at least .* of its GPU, and GPU {} has .* free; give {} or fewer"
    with pytest.raises(UsageError, match=words.format(5, "0", 4)):
        require_gpu_memory(5, ["0"], free, half)
    with pytest.raises(UsageError, match=words.format(4, "1", 3)):  # the second of two on GPU 1
        require_gpu_memory(4, ["0", "1"], free, half)
    with pytest.raises(UsageError, match=words.format(9, "GPU-5c", 4)):
        require_gpu_memory(9, ["GPU-5c"], free, half)
    with pytest.raises(UsageError, match="free some memory first"):
        require_gpu_memory(1, ["1"], free, 1 << 30)
    assert free_on_gpus().keys() >= set(gpus()) or not free_on_gpus()
