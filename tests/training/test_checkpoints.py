import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_cnn.core.errors import UsageError
from lit_cnn.training.checkpoints import CheckpointIO256, digest_of_weights, load_checkpoint, save_checkpoint


def checkpoint(fill: float = 1.0, size: int = 50) -> dict[str, Any]:
    return {
        "state_dict": OrderedDict(weight=torch.full((size,), fill), steps=torch.tensor(3)),
        "epoch": 2,
        "names": ["a", "ü"],
        "nested": {"lr": 0.1, "none": None, "pair": (1, 2.5)},
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_checkpoint(checkpoint(), tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(f"ckpt_path={path}: ") and "\n" not in message
    return message


def assert_is(loaded: dict[str, Any], expected: dict[str, Any]) -> None:
    assert {key: value for key, value in loaded.items() if key != "state_dict"} == {
        key: value for key, value in expected.items() if key != "state_dict"
    }
    assert list(loaded["state_dict"]) == list(expected["state_dict"])
    assert all(torch.equal(loaded["state_dict"][name], value) for name, value in expected["state_dict"].items())


def test_what_is_saved_is_loaded(path: Path) -> None:
    assert_is(load_checkpoint(path), checkpoint())
    assert os.listdir(path.parent) == [path.name]


def test_lightnings_door_does_the_same(tmp_path: Path) -> None:
    door = CheckpointIO256()
    door.save_checkpoint(checkpoint(2.0), tmp_path / "new" / "a.ckpt")
    assert_is(door.load_checkpoint(str(tmp_path / "new" / "a.ckpt"), weights_only=False), checkpoint(2.0))
    for _ in range(2):
        door.remove_checkpoint(tmp_path / "new" / "a.ckpt")
        assert not (tmp_path / "new" / "a.ckpt").exists()


def test_any_reader_of_torch_checkpoints_opens_it(path: Path) -> None:
    assert_is(torch.load(path, weights_only=True), checkpoint())
    assert_is(torch.load(path, weights_only=True, mmap=True), checkpoint())
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    content = path.read_bytes()[: -len(comment) - 2]
    assert comment.decode() == f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_flipped_bit_anywhere_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    offsets = {*range(0, len(content), 23), *range(len(content) - 110, len(content))}
    damaged = tmp_path / "damaged.ckpt"
    for offset in sorted(offsets):
        for bit in (0x01, 0x20, 0x80):
            changed = bytearray(content)
            changed[offset] ^= bit
            damaged.write_bytes(changed)
            refused(damaged)


def test_a_file_cut_short_or_made_longer_is_refused(path: Path, tmp_path: Path) -> None:
    content = path.read_bytes()
    damaged = tmp_path / "damaged.ckpt"
    for length in [0, 1, 22, 72, 73, 74, 100, len(content) // 2, *range(len(content) - 100, len(content))]:
        damaged.write_bytes(content[:length])
        refused(damaged)
    for more in (b"x", b"\0", content):
        damaged.write_bytes(more + content)
        refused(damaged)
    for more in (b"x", b"\0"):
        damaged.write_bytes(content + more)
        refused(damaged)


def test_no_beginning_of_a_file_passes_for_one_that_needs_no_digest(tmp_path: Path) -> None:
    hparams = {"arch": "lit/lenet5", "num_classes": 2, "image_size": 8, "class_names": ["a", "b"]}
    of_classifier = {**checkpoint(), "hyper_parameters": {**hparams, "interpolation": "area"}}
    save_checkpoint(of_classifier, tmp_path / "whole.ckpt")
    content, damaged = (tmp_path / "whole.ckpt").read_bytes(), tmp_path / "damaged.ckpt"
    for length in {*range(0, len(content), 11), *range(len(content) - 300, len(content))}:
        damaged.write_bytes(content[:length])
        assert "is not a checkpoint of lit_cnn, or was cut short" in refused(damaged)
    # What torch alone writes is the same but for the last record's word on the comment, and the comment.
    torch.save(of_classifier, damaged)
    assert_is(load_checkpoint(damaged), of_classifier)


def test_a_plain_torch_file_is_refused(tmp_path: Path) -> None:
    torch.save(checkpoint(), tmp_path / "plain.ckpt")
    assert "is not a checkpoint of lit_cnn" in refused(tmp_path / "plain.ckpt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "absent.ckpt")
    assert "no such file" in refused(tmp_path)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_a_pickle_that_runs_code_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "code_has_run"
    pickle.loads(pickle.dumps(Malicious(tmp_path / "proof")))
    assert (tmp_path / "proof").is_dir()  # the attack works where pickles are loaded
    # Its digest is right: whoever writes the attack can compute one.
    save_checkpoint({"state_dict": Malicious(target)}, tmp_path / "bad.ckpt")
    assert "cannot be read as tensors and plain values" in refused(tmp_path / "bad.ckpt")
    with pytest.raises(UsageError):
        CheckpointIO256().load_checkpoint(tmp_path / "bad.ckpt", weights_only=False)
    assert not target.exists()


def test_an_object_that_cannot_be_saved_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"state_dict": lambda: None}, path)
    assert_is(load_checkpoint(path), checkpoint())
    assert os.listdir(path.parent) == [path.name]


KILL_IN_MID_WRITE = """
import itertools, json, os, signal, sys, time
from pathlib import Path
import torch
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint

torch.set_num_threads(1)
path = Path(sys.argv[1])
for delay in range(8):
    reader, writer = os.pipe()
    if not (child := os.fork()):
        for number in itertools.count(1):
            save_checkpoint({"weight": torch.full((2_000_000,), float(number))}, path)
            os.write(writer, bytes([number]))
    os.close(writer)
    os.read(reader, 1)
    time.sleep(0.006 * delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = max([1, *os.read(reader, 255)])
    weight = load_checkpoint(path)["weight"]
    left_over = list(path.parent.glob(f".{path.name}.*"))
    print(json.dumps({"saved": saved, "found": sorted(set(weight.tolist())), "torn": len(left_over)}))
    for file in left_over:
        file.unlink()
"""


def test_a_kill_in_mid_write_leaves_a_whole_file(tmp_path: Path, repo_root: Path) -> None:
    command = [sys.executable, "-c", KILL_IN_MID_WRITE, str(tmp_path / "big.ckpt")]
    child = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    kills = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(kills) == 8
    for kill in kills:
        # What was reported as saved is there, or the one after it; and one alone.
        assert kill["found"] in ([kill["saved"]], [kill["saved"] + 1])
    assert any(kill["torn"] for kill in kills), "no kill fell into a write: the test showed nothing"


FILL_THE_DISK = """
import os, resource, signal, sys
from pathlib import Path
import torch
from lit_cnn.training.checkpoints import load_checkpoint, save_checkpoint

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
save_checkpoint({"weight": torch.zeros(1_000_000)}, path)
size = path.stat().st_size
for missing in (1, 40, 72, 75, 90, 3_000_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - missing, resource.RLIM_INFINITY))
    try:
        save_checkpoint({"weight": torch.ones(1_000_000)}, path)
    except (OSError, RuntimeError) as error:
        print(missing, type(error).__name__, os.listdir(path.parent), load_checkpoint(path)["weight"].max().item())
"""


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, repo_root: Path) -> None:
    # The sizes fall into the digest, just before it, and into the tensors.
    command = [sys.executable, "-c", FILL_THE_DISK, str(tmp_path / "kept" / "last.ckpt")]
    child = subprocess.run(command, cwd=repo_root, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    told = [line.split(maxsplit=2) for line in child.stdout.splitlines()]
    assert [int(missing) for missing, _, _ in told] == [1, 40, 72, 75, 90, 3_000_000]
    assert {rest for _, _, rest in told} == {"['last.ckpt'] 0.0"}


def test_the_digest_of_weights_sees_every_change_and_no_order() -> None:
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1), "c": torch.zeros(2, dtype=torch.bfloat16)}
    digest = digest_of_weights(weights)
    assert len(digest) == 64
    assert digest_of_weights(dict(reversed(weights.items()))) == digest
    assert digest_of_weights({name: tensor.clone() for name, tensor in weights.items()}) == digest
    assert digest_of_weights(weights | {"a": weights["a"].T.contiguous().T}) == digest  # laid out otherwise, the same
    nudged = weights["a"].clone()
    nudged[1, 2] = torch.nextafter(nudged[1, 2], torch.tensor(9.0))
    others = [
        weights | {"a": nudged},
        weights | {"a": weights["a"].reshape(3, 2)},
        weights | {"a": weights["a"].view(torch.int32)},
        weights | {"d": torch.zeros(0)},
        {"z" if name == "a" else name: tensor for name, tensor in weights.items()},
    ]
    assert len({digest, *(digest_of_weights(other) for other in others)}) == 6
