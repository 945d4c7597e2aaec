import hashlib
import io
import random
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data import streaming
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.remote import shards as remote_shards
from lit_cnn.data.remote.cache import ByteCache, cache_folder
from lit_cnn.data.remote.place import Place
from lit_cnn.data.remote.shards import Shards
from lit_cnn.data.sources import load_image_set, place_of
from lit_cnn.data.streaming import StreamedOrder, grouped
from tests.faults import kill_at_random, outcome, start
from tests.odd_folders import picture
from tests.remote_places import Web, bucket


def shard(file: Path, numbers: range, **more: bytes) -> Path:
    """Writes pictures in two classes as a tar shard."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number in numbers:
            buffer = io.BytesIO()
            picture(number).save(buffer, "png")
            for suffix, content in (("png", buffer.getvalue()), ("cls", b"%d" % (number % 2))):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        for name, content in more.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def write_shards(folder: Path, names: tuple[str, ...], count: int = 8) -> Path:
    for place, name in enumerate(names):
        shard(folder / f"{name}.tar", range(place * count, place * count + count))
    return folder


@pytest.mark.parametrize("given", ["", "/", "/train-{000..001}.tar", "/train-000.tar"])
@pytest.mark.parametrize("kind", ["s3", "http"])
def test_shards_are_the_same_set_wherever_they_lie(kind: str, given: str, tmp_path: Path, s3: None, web: Web) -> None:
    root = write_shards(tmp_path / "web" / "pets", ("train-000", "train-001", "val-000"))
    shard(root / "train-001.tar", range(8, 16), **{"._a.png": b"other software's", "99.png": b"no label"})
    if kind == "s3":
        bucket("kept", root, "all/pets/")
    address = ("s3://kept/all/pets" if kind == "s3" else f"{web.address}/pets") + given
    on_disk = load_image_set("webdataset", Path(f"{root}{given}"), checked=False)
    for _ in range(2):
        found = load_image_set("webdataset", place_of(address), checked=False)
        assert (found.digest, found.class_names, found.name) == (on_disk.digest, on_disk.class_names, on_disk.name)
        assert list(found.paths) == list(on_disk.paths) and list(found.hashes) == list(on_disk.hashes)
        assert {name: part.tolist() for name, part in found.splits.items()} == {
            name: part.tolist() for name, part in on_disk.splits.items()
        }
        assert found.findings == on_disk.findings and found.source == address.rstrip("/")
        for index in range(len(found.paths)):
            assert np.array_equal(found.images[index], on_disk.images[index])
        shutil.rmtree(cache_folder() / "objects")  # the second time by what is remembered, and from afar


@pytest.mark.parametrize("count", [1, 7, 30])
@pytest.mark.parametrize("block", [1, 3, 40])
def test_a_streamed_order_is_a_function_of_seed_and_epoch(count: int, block: int) -> None:
    shard_of = np.random.default_rng(count).integers(0, count, 500)
    starts, members = grouped(shard_of, count)
    epochs = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        whole = StreamedOrder(seed, epoch, starts, block, members)[:]
        assert sorted(whole.tolist()) == list(range(500))
        epochs[seed, epoch] = whole.tolist()
        # From any place on, in parts of any length, by one who has seen nothing of what was before.
        for first, step in ((0, 33), (417, 10), (499, 1)):
            fresh = StreamedOrder(seed, epoch, starts, block, members)
            parts = [fresh[place : min(place + step, 500)] for place in range(first, 500, step)]
            assert np.concatenate(parts).tolist() == whole[first:].tolist()
        fresh, seen = StreamedOrder(seed, epoch, starts, block, members), list[int]()
        for place, position in enumerate(whole):
            assert shard_of[position] in fresh.shards_of(fresh.block_at(place))
        for number in range(-(-count // block)):
            seen += fresh.shards_of(number).tolist()
        assert sorted(seen) == list(range(count)) and not len(fresh.shards_of(-(-count // block)))
    assert len({tuple(each) for each in epochs.values()}) == 3
    contiguous = StreamedOrder(0, 0, starts, block)[:]
    assert np.array_equal(members[contiguous], StreamedOrder(0, 0, starts, block, members)[:])


def streamed(root: str, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ImageDataModule:
    options = {"sampler": "streamed", "image_size": 8, "batch_size": 5, "num_workers": 0, "seed": 3, **options}
    return ImageDataModule("webdataset", root=root, **options)


def batches_of(data: ImageDataModule, epochs: int = 2) -> list[list[int]]:
    loader, found = data.train_dataloader(), []
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found += [images.numpy().tobytes() for images, _ in loader]
    return found


def test_a_cache_of_two_blocks_streams_all_shards(tmp_path: Path, s3: None, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_shards(tmp_path / "pets", (*(f"train-{number:03}" for number in range(12)), "val-000", "test-000"))
    size = max(file.stat().st_size for file in root.iterdir())
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 2.0 * size)
    bucket("kept", root, "pets/")
    on_disk = streamed(str(root), monkeypatch)
    reference = batches_of(on_disk)
    assert len(reference) == 2 * 20 and len(set(reference)) == 40  # of other images in the second epoch
    bound = 5 * size / 1e9
    for num_workers in (0, 2):
        data = streamed("s3://kept/pets", monkeypatch, num_workers=num_workers, cache_gb=bound)
        assert data.digests == on_disk.digests
        assert batches_of(data) == reference
        assert sum(file.stat().st_size for file in cache_folder().rglob("objects/*/*")) <= bound * 1e9
        assert sum(len(labels) for _, labels in data.test_dataloader()) == 8
    with pytest.raises(UsageError, match=r"^sampler=streamed: has two times 2 shards here at a time, .*cache_gb=\d"):
        _ = streamed("s3://kept/pets", monkeypatch, cache_gb=3.5 * size / 1e9).num_train_batches
    with pytest.raises(UsageError, match=r"^s3://kept/pets/t.*.tar: has .*B, for which there is no room in"):
        shutil.rmtree(cache_folder())
        _ = streamed("s3://kept/pets", monkeypatch, cache_gb=size / 3e9).image_set


def test_without_room_for_all_an_image_is_asked_for_by_itself(
    tmp_path: Path, s3: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shards(tmp_path / "pets", tuple(f"{number:03}" for number in range(6)))
    size = max(file.stat().st_size for file in root.iterdir())
    bucket("kept", root)
    data = streamed("s3://kept", monkeypatch, sampler="shuffled", cache_gb=2.5 * size / 1e9)
    assert batches_of(data) == batches_of(streamed(str(root), monkeypatch, sampler="shuffled"))
    assert "each image is asked for by itself; `sampler=streamed` reads" in capsys.readouterr().err
    assert len(list(cache_folder().rglob("objects/*/*"))) == 2  # nothing was driven out for single images
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(4):
            picture(number + 50 * (name == "a")).save(tmp_path / "photos" / name / f"{number}.png")
    folder = ImageDataModule("image_folder", root=tmp_path / "photos", sampler="streamed")
    with pytest.raises(UsageError, match=r"^sampler=streamed: reads tar shards one after the other, and these images"):
        _ = folder.num_train_batches


def test_an_interrupted_fetch_goes_on_and_a_changed_shard_is_told(
    tmp_path: Path, s3: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_shards(tmp_path / "pets", ("a", "b"), count=30)
    client = bucket("kept", root)
    place, cache = Place("s3://kept"), ByteCache(1e6)
    shards = Shards(place, place.files(), cache)
    monkeypatch.setattr(remote_shards, "_PART", 10_000)
    asked: list[int] = []
    read_part = Place.read_part

    def fails_at_third(self: Place, file: Any, start: int, size: int) -> bytes:
        asked.append(start)
        if len(asked) == 3:
            raise UsageError(None, file.path, "cannot be reached")
        return read_part(self, file, start, size)

    monkeypatch.setattr(Place, "read_part", fails_at_third)
    with pytest.raises(UsageError, match="cannot be reached"):
        shards.fetch(0)
    assert shards.open(0) is None
    file = shards.fetch(0)
    assert file is not None and file.read_bytes() == (root / "a.tar").read_bytes()
    assert asked[:4] == [0, 10_000, 20_000, 20_000] and len(set(asked)) == len(asked) - 1
    assert not list((cache_folder() / "parts").iterdir())
    monkeypatch.setattr(Place, "read_part", read_part)
    digest = hashlib.sha256((root / "b.tar").read_bytes()).hexdigest()
    client.put_object(Bucket="kept", Key="b.tar", Body=bytes((root / "b.tar").stat().st_size))
    with pytest.raises(UsageError, match=r"^s3://kept/b.tar: has other bytes than when it was read first; put it back"):
        shards.fetch(1, digest)
    assert shards.open(1) is None and not (cache_folder() / "parts" / shards.keys[1]).exists()
    client.put_object(Bucket="kept", Key="c.tar", Body=b"no tar at all" * 99)
    with pytest.raises(UsageError, match=r"^root=s3://kept/c.tar.* is no plain, whole tar"):
        load_image_set("webdataset", place_of("s3://kept/c.tar"))
    with pytest.raises(UsageError, match=r"^root=s3://kept/{a,d}.tar: s3://kept/d.tar is not there"):
        load_image_set("webdataset", place_of("s3://kept/{a,d}.tar"))


def test_a_killed_run_on_streamed_shards_goes_on_to_the_same_weights(
    tmp_path: Path, empty_store: None, s3: None
) -> None:
    root = write_shards(tmp_path / "pets", tuple(f"{number:03}" for number in range(10)), count=32)
    bucket("kept", root)
    arguments = ["fit", "--data.root=s3://kept", "--data.dataset=webdataset", "--data.sampler=streamed"]
    arguments += ["--model.arch=lenet5", "--data.image_size=32", "--data.batch_size=8", "--data.num_workers=1"]
    arguments += ["--trainer.max_epochs=3", "--checkpoint_seconds=0.05", "--report=false", "--resume=auto"]
    assert start(arguments, tmp_path / "whole").wait() == 0
    kill_at_random(arguments, tmp_path / "killed", random.Random(1), 0.5)
    assert start(arguments, tmp_path / "killed").wait() == 0
    whole, killed = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert killed.metrics == whole.metrics and not killed.duplicates
    assert all(whole.weights[name].equal(killed.weights[name]) for name in whole.weights)
    assert "resum" in (tmp_path / "killed" / "log.txt").read_text()
    assert main(["check-data", "--data.root=s3://kept", "--data.dataset=webdataset", "--level=quick"]) == 0
