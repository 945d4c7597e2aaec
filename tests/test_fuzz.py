"""Readers of files that may come from anybody: whatever is in them, they give what it holds or one line, at once.

Each starts from a file that is right and gets bytes changed, cut out or put in; hypothesis shrinks what fails.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from lit_cnn.cli.precheck import precheck
from lit_cnn.core.errors import UsageError
from lit_cnn.data.index_cache import remembered
from lit_cnn.data.sources import load_idx, load_manifest
from lit_cnn.evaluation.logits_file import read_logits, write_logits
from lit_cnn.evaluation.stored_logits import NetworkRecord, read_record, write_record
from lit_cnn.tracking.journal import JOURNAL, read_header, read_journal
from lit_cnn.tracking.progress import MlflowRun, Progress
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint
from lit_cnn.training.weights import find_weights
from tests.data.sources.test_manifest import png, save_images, write_csv

Change = list[tuple[int, int, bytes]]

# (where, how many bytes go, what comes instead); the place counts from the end too, for that is where zips have their
# table of contents.
changes = st.lists(
    st.tuples(st.integers(-300, 2_000), st.integers(0, 16), st.binary(max_size=8)), min_size=1, max_size=4
)
# A reader that hangs is ended by pytest's own limit; one that takes seconds is a failure here.
bounded = settings(
    max_examples=150, deadline=2_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def changed(content: bytes, change: Change) -> bytes:
    for place, removed, put in change:
        place = max(0, min(len(content), place if place >= 0 else len(content) + place))
        content = content[:place] + put + content[place + removed :]
    return content


def is_one_line_or_a_value(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a reader gives; None after a refusal in one line."""
    try:
        return function(*arguments)
    except UsageError as error:
        names_its_option = error.option is not None or str(error).startswith("--")
        assert names_its_option and len(str(error)) < 2_000
        return None


@given(change=changes)
@bounded
def test_stored_logits_are_read_as_they_were_written_or_not_at_all(change: Change, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=(1, 5, 3)).astype(np.float32)
    for exact in (True, False):
        write_logits(tmp_path / "whole", logits, exact)
        written = read_logits(tmp_path / "whole")
        assert written is not None and np.allclose(np.diff(written), np.diff(logits), atol=0.01)
        (tmp_path / "changed").write_bytes(changed((tmp_path / "whole").read_bytes(), change))
        found = read_logits(tmp_path / "changed")
        assert found is None or np.array_equal(found, written)


@given(change=changes)
@bounded
def test_a_networks_record_is_read_as_it_was_written_or_not_at_all(change: Change, tmp_path: Path) -> None:
    record = NetworkRecord({"dataset": "digits", "seed": 0}, ["a", "ö"], {"crop_pct": 1.0}, "0" * 64, 61_706, 416_520)
    write_record(tmp_path / "whole", record)
    (tmp_path / "changed").write_bytes(changed((tmp_path / "whole").read_bytes(), change))
    assert read_record(tmp_path / "changed") in (None, record)


@given(content=st.binary(max_size=300))
@bounded
def test_stored_logits_of_any_bytes_are_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "any").write_bytes(content)
    assert read_logits(tmp_path / "any") is None
    assert read_record(tmp_path / "any") is None


@given(change=changes)
@bounded
def test_a_checkpoint_is_loaded_as_it_was_written_or_refused(change: Change, tmp_path: Path) -> None:
    save_checkpoint({"weight": torch.arange(4.0)}, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "changed.ckpt").write_bytes(changed(whole, change))
    found = is_one_line_or_a_value(load_checkpoint, tmp_path / "changed.ckpt")
    assert found is None or (changed(whole, change) == whole and torch.equal(found["weight"], torch.arange(4.0)))


@given(change=changes, suffix=st.sampled_from([".safetensors", ".pth"]))
@bounded
def test_a_file_of_weights_is_read_or_refused(change: Change, suffix: str, tmp_path: Path) -> None:
    whole, weights = tmp_path / f"whole{suffix}", {"a.weight": torch.ones(2, 2), "a.bias": torch.zeros(2)}
    if suffix == ".pth":
        torch.save(weights, whole)
    else:
        from safetensors.torch import save_file

        save_file(weights, whole)
    (tmp_path / f"changed{suffix}").write_bytes(changed(whole.read_bytes(), change))
    is_one_line_or_a_value(find_weights, "lit/lenet5", str(tmp_path / f"changed{suffix}"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_images(tmp_path / "pets", *(f"images/{number}.png" for number in range(4)))


@given(change=changes)
@bounded
def test_a_csv_manifest_is_read_or_refused(change: Change, folder: Path) -> None:
    rows = [f"images/{number}.png,{'ab'[number % 2]},train,g{number}" for number in range(4)]
    content = write_csv(folder / "whole.csv", "path,label,split,group", *rows).read_bytes()
    (folder / "changed.csv").write_bytes(changed(content, change))
    found = is_one_line_or_a_value(load_manifest, folder / "changed.csv")
    assert found is None or len(found.labels) == len(found.images) == len(found.hashes)


@given(text=st.text(max_size=200))
@bounded
def test_any_text_as_a_manifest_is_read_or_refused(text: str, folder: Path) -> None:
    (folder / "any.csv").write_text(text, encoding="utf-8", errors="surrogatepass")
    is_one_line_or_a_value(load_manifest, folder / "any.csv")


@given(change=changes)
@bounded
def test_a_parquet_manifest_is_read_or_refused(change: Change, tmp_path: Path) -> None:
    table = pa.table({"image": [png(value) for value in range(4)], "label": ["a", "b", "a", "b"]})
    parquet.write_table(table, tmp_path / "whole.parquet")
    (tmp_path / "changed.parquet").write_bytes(changed((tmp_path / "whole.parquet").read_bytes(), change))
    is_one_line_or_a_value(load_manifest, tmp_path / "changed.parquet")
    shutil.rmtree(tmp_path / ".cache", ignore_errors=True)


@given(change=changes, which=st.sampled_from(["images-idx3", "labels-idx1"]))
@bounded
def test_idx_files_are_read_or_refused(change: Change, which: str, tmp_path: Path) -> None:
    for part in ("train", "t10k"):
        images = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 3]) + bytes(18)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(images)
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 0, 1]))
    file = tmp_path / f"train-{which}-ubyte"
    file.write_bytes(changed(file.read_bytes(), change))
    is_one_line_or_a_value(load_idx, tmp_path)


@given(change=changes)
@bounded
def test_a_remembered_scan_is_read_or_made_again(change: Change, tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {"sizes": np.arange(5), "digests": np.zeros((5, 32), np.uint8)}
    file = tmp_path / "index.npz"
    file.unlink(missing_ok=True)
    remembered(file, lambda: arrays)
    file.write_bytes(changed(file.read_bytes(), change))
    found = remembered(file, lambda: arrays)
    assert all(isinstance(value, np.ndarray) and value.dtype != object for value in found.values())


@given(content=st.binary(max_size=200), change=changes)
@bounded
def test_a_runs_own_notes_are_read_or_passed_over(content: bytes, change: Change, tmp_path: Path) -> None:
    for name in ("sent.json", "run.json"):
        (tmp_path / name).write_bytes(content)
    assert Progress.read(tmp_path).offset is not None
    MlflowRun.read(tmp_path)
    lines = b'{"kind": "header", "key": "a"}\n{"kind": "metrics", "step": 1, "values": {"a": 1.0}}\n'
    (tmp_path / JOURNAL).write_bytes(changed(lines, change))
    read_header(tmp_path)
    assert all(after <= len(changed(lines, change)) for _, after in read_journal(tmp_path))


yaml_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@given(content=yaml_values | st.binary(max_size=100))
@bounded
def test_a_config_is_looked_at_without_a_traceback(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content if isinstance(content, bytes) else yaml.safe_dump(content).encode())
    is_one_line_or_a_value(precheck, ["--config", str(file)])
