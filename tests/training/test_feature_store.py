"""Entries on disk: whole or absent, computed once, never more than the bound, never taken from under a reader."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from lit_cnn.training.feature_store import CacheKey, Features, NoRoomError, get_or_compute, store_folder

PLENTY = 10**9


def wanted(name: str = "a", rows: int = 8, stored_as: Literal["bf16", "fp16", "fp32"] = "fp32") -> CacheKey:
    return CacheKey({"name": name}, (rows, 3), stored_as)


def parts(rows: int = 8, fill: float = 1.5) -> Iterator[torch.Tensor]:
    """Rows in parts of five: row r is filled with `fill` + r."""
    values = (torch.arange(rows).reshape(-1, 1) + fill).expand(rows, 3)
    yield from values.split(5)


def get(entry: CacheKey, max_bytes: int = PLENTY) -> tuple[Features, bool]:
    return get_or_compute(entry, lambda: parts(entry.shape[0]), max_bytes)


@pytest.mark.parametrize("stored_as", ["bf16", "fp16", "fp32"])
def test_what_is_computed_is_found_again(stored_as: Literal["bf16", "fp16", "fp32"]) -> None:
    first, was_there = get(wanted(stored_as=stored_as))
    again, is_there = get(wanted(stored_as=stored_as))
    assert (was_there, is_there) == (False, True)
    expected = torch.cat(list(parts()))
    for features in (first, again):
        assert torch.equal(features.values.float(), expected)
    (file,) = store_folder().glob("*/features.npy")
    assert np.load(file).nbytes == wanted(stored_as=stored_as).num_bytes == 24 * (4 if stored_as == "fp32" else 2)


def test_another_key_shape_or_type_is_another_entry() -> None:
    names = {
        each.name
        for each in (wanted(), wanted("b"), wanted(rows=9), wanted(stored_as="fp16"), wanted(stored_as="bf16"))
    }
    assert len(names) == 5


def test_a_computation_that_fails_or_is_stopped_leaves_nothing_that_is_taken_for_whole() -> None:
    def stops() -> Iterator[torch.Tensor]:
        yield next(parts())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        get_or_compute(wanted(), stops, PLENTY)
    with pytest.raises(RuntimeError, match="60 bytes of features, not 96"):
        get_or_compute(wanted(), lambda: [next(parts())], PLENTY)
    assert not list(store_folder().glob("*/*"))
    assert get(wanted())[1] is False


# The first child computes half of an entry and waits to be killed.
KILLED = """
import os, signal, sys, time
from tests.training.test_feature_store import *

reader, writer = os.pipe()
if not (child := os.fork()):
    def half():
        yield next(parts())
        os.write(writer, b"x")
        time.sleep(600)
    get_or_compute(wanted(), half, PLENTY)
os.read(reader, 1)
(entry,) = [each for each in store_folder().iterdir() if each.is_dir()]
print(sorted(each.name.partition(".npy")[0] for each in entry.iterdir()))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
features, found = get(wanted())
print(found, torch.equal(features.values, torch.cat(list(parts()))), sorted(each.name for each in entry.iterdir()))
"""


def run_python(code: str, repo_root: Path, timeout: float = 120) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(repo_root)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return [*done.stdout.splitlines(), *done.stderr.splitlines()]


def test_a_kill_in_mid_computation_leaves_neither_a_lock_nor_a_torn_entry(repo_root: Path) -> None:
    torn, afterwards = run_python(KILLED, repo_root)
    assert torn == "['.features']"
    assert afterwards == "False True ['entry.json', 'features.npy']"


# Eight processes ask at the same time; whoever computes takes two seconds, so that the others have to say they wait.
EIGHT = """
import os, sys, time
from tests.training.test_feature_store import *

torch.set_num_threads(1)
reader, writer = os.pipe()
children = []
for number in range(8):
    if not (child := os.fork()):
        def slow():
            os.write(writer, b"computed ")
            time.sleep(2)
            yield from parts()
        features, found = get_or_compute(wanted(), slow, PLENTY)
        same = torch.equal(features.values, torch.cat(list(parts())))
        os.write(writer, b"found " if found and same else b"")
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
print(codes, os.read(reader, 9999).decode())
"""


def test_of_eight_at_once_one_computes_and_the_others_wait_and_say_so(repo_root: Path) -> None:
    told, *said = run_python(EIGHT, repo_root)
    assert told == f"{[0] * 8} computed {'found ' * 7}"
    assert said == ["lit-cnn: another run computes the features; waiting for it"] * 7


def test_the_longest_unused_entries_go_and_never_one_in_use() -> None:
    for place, name in enumerate("abc"):
        features, _ = get(wanted(name))
        features.close()
        os.utime(store_folder() / wanted(name).name / "entry.json", (place, place))
    get(wanted("a"))[0].close()  # used just now: b is the oldest
    size = sum(file.stat().st_size for file in store_folder().glob("*/*"))
    kept, _ = get(wanted("d"), size)
    names = {file.parent.name for file in store_folder().glob("*/entry.json")}
    assert wanted("b").name not in names and {wanted("a").name, wanted("d").name} <= names
    with pytest.raises(NoRoomError, match=r"in use, pass `feature_cache_gb="):
        get(wanted("e"), wanted().num_bytes + 100)
    assert {file.parent.name for file in store_folder().glob("*/entry.json")} == {wanted("d").name}
    assert torch.equal(kept.values, torch.cat(list(parts())))
    kept.close()
    assert get(wanted("e"), wanted().num_bytes + 100)[1] is False
    assert {file.parent.name for file in store_folder().glob("*/entry.json")} == {wanted("e").name}


def test_a_damaged_entry_is_said_and_computed_anew_while_another_run_reads_the_old_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, _ = get(wanted())
    folder = store_folder() / wanted().name
    for damage in ("features.npy", "entry.json"):
        file = folder / damage
        file.write_bytes(file.read_bytes()[:-3] + b"xyz")
        assert get(wanted())[1] is False
        said = capsys.readouterr().err
        reason = "was changed after it was written (SHA-256 differs): computing it anew"
        assert said == f"lit-cnn: {folder / 'features.npy'} {reason}\n"
    assert json.loads((folder / "entry.json").read_text())["key"] == {"name": "a"}
    assert [each.name for each in store_folder().iterdir() if each.is_dir()] == [wanted().name]
    reader.close()
