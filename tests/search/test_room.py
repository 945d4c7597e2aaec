"""How many workers a machine has room for, and each one's share."""

import os

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.search.room import free_in, free_memory, free_on_gpus, gpus, require_gpu_memory, require_memory, shares


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
