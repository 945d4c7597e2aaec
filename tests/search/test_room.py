"""How many workers a machine has room for, and each one's share."""

import os

import pytest

from lit_cnn.core.errors import UsageError
from lit_cnn.search.room import free_memory, gpus, require_memory, shares


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
