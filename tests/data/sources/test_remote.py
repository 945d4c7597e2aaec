import csv
import hashlib
import os
import shutil
import socket
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from lit_cnn.cli import main
from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.image_set import ImageSet
from lit_cnn.data.remote import cache as caches
from lit_cnn.data.remote import place as places
from lit_cnn.data.remote.cache import ByteCache, cache_folder
from lit_cnn.data.remote.images import RemoteImages
from lit_cnn.data.sources import load_image_set, place_of
from lit_cnn.training.checkpoints import load_checkpoint
from tests.odd_folders import images
from tests.remote_places import Web, bucket


def odd_folder(root: Path) -> Path:
    """Images under names that a URL spells otherwise, in splits, and much that is no image of a class."""
    images(root, "train/dog", "train/Käse & Brot", "train/100%25", "val/dog", "val/Käse & Brot", "val/100%25", count=4)
    images(root, "train/dog/deep/er/1.png", "val/loose.png", "Extra/1.png", start=90)
    shutil.copyfile(root / "train/dog/1.png", root / "train/dog/without suffix")
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "page.xyz", "film.bin"):
        (root / "train" / "dog" / name).write_bytes(b"\x00\x01 no image" * 20)
    (root / "train" / "dog" / "empty.jpg").touch()
    return root


def assert_same(found: ImageSet, on_disk: ImageSet, address: str) -> None:
    for name in ("class_names", "in_channels", "groups", "digest"):
        assert getattr(found, name) == getattr(on_disk, name), name
    assert list(found.paths) == list(on_disk.paths) and list(found.hashes) == list(on_disk.hashes)
    assert found.labels.tolist() == on_disk.labels.tolist() and found.splits.keys() == on_disk.splits.keys()
    assert all(np.array_equal(found.splits[name], on_disk.splits[name]) for name in on_disk.splits)
    assert found.source == address and found.name == on_disk.name
    root = on_disk.source.rpartition("/")[0] if on_disk.source.endswith("v") else on_disk.source
    there = address.rpartition("/")[0] if on_disk.source.endswith("v") else address
    told = [replace(one, message=one.message.replace(root, there)) for one in on_disk.findings]
    assert list(found.findings) == told
    for index, digest in enumerate(found.hashes):
        if digest != hashlib.sha256().hexdigest():
            assert np.array_equal(found.images[index], on_disk.images[index])


@pytest.mark.parametrize("kind", ["s3", "http", "file", "memory"])
def test_a_folder_is_the_same_set_wherever_it_lies(kind: str, tmp_path: Path, s3: None, web: Web) -> None:
    root = odd_folder(tmp_path / "web" / "pets")
    on_disk = load_image_set("image_folder", root, checked=False)
    assert len(on_disk.paths) == 27 and len(on_disk.findings) > 4
    address = {"s3": "s3://kept/all/pets", "http": f"{web.address}/pets", "file": f"file://{root}"}.get(
        kind, "memory://all/pets"
    )
    if kind == "s3":
        bucket("kept", root, "all/pets/").put_object(Bucket="kept", Key="all/pets/", Body=b"")
    if kind == "memory":
        import fsspec  # type: ignore[import-untyped]

        fsspec.filesystem("memory").put(f"{root}/", "/all/pets/", recursive=True)
    for given in (address, f"{address}/"):
        assert_same(load_image_set("image_folder", place_of(given), checked=False), on_disk, address)
    assert [one.paths for one in [load_image_set("image_folder", place_of(address), checked=False)]] == [on_disk.paths]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("kind", ["s3", "web that lists", "web"])
def test_a_manifest_is_the_same_set_wherever_it_lies(
    kind: str, suffix: str, tmp_path: Path, s3: None, web: Web
) -> None:
    root = images(tmp_path / "web" / "pets", "a b", "ü", count=3)
    rows = [
        ("a b/0.png", "x"),
        (" a b/1.png ", "y"),
        ("ü\\0.png", "y"),
        ("ü/1.png", "x"),
        ("ü/1.png", "y"),
        ("no.png", "x"),
    ]
    file = root / f"list.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pa.table({"path": [path for path, _ in rows], "label": [label for _, label in rows]}), file)
    else:
        with file.open("w", encoding="utf-8") as opened:
            csv.writer(opened, delimiter="\t" if suffix == "tsv" else ",").writerows([("path", "label"), *rows])
    on_disk = load_image_set("manifest", file, checked=False)
    web.lists = kind == "web that lists"
    if kind == "s3":
        bucket("kept", root, "pets/")
    address = f"s3://kept/pets/{file.name}" if kind == "s3" else f"{web.address}/pets/{file.name}"
    found = load_image_set("manifest", place_of(address), checked=False)
    assert list(found.paths) == list(on_disk.paths) and found.labels.tolist() == on_disk.labels.tolist()
    assert found.hashes[:5] == on_disk.hashes[:5]
    assert [(one.kind, one.cases) for one in found.findings] == [(one.kind, one.cases) for one in on_disk.findings]
    missing = next(one for one in found.findings if one.kind == "missing_file")
    assert missing.message.startswith(f"{address.rpartition('/')[0]}/no.png is not there")
    assert np.array_equal(found.images[2], on_disk.images[2])


def test_what_was_read_once_is_not_read_again(tmp_path: Path, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "web" / "pets", "a", "b")

    def reads() -> list[str]:
        web.asked.clear()
        data = ImageDataModule("image_folder", root=f"{web.address}/pets", image_size=8, num_workers=0)
        assert sum(len(labels) for _, labels in data.plain_train_loader()) == len(data.splits.train)
        return sorted(path for method, path in web.asked if method == "GET" and path.endswith(".png"))

    every = sorted(f"/pets/{name}/{number}.png" for name in "ab" for number in range(6))
    assert reads() == every
    assert "reading 12 images" in (said := capsys.readouterr().err) and str(cache_folder()) in said and "B/s" in said
    assert reads() == [] and "reading" not in capsys.readouterr().err
    images(root, "b/0.png", start=500)
    os.utime(root / "b" / "0.png", (1e9, 1e9))
    assert reads() == ["/pets/b/0.png"]
    shutil.rmtree(cache_folder() / "objects")  # the index is left: only what training sees is read
    assert len(reads()) == 8


def test_the_cache_keeps_to_its_bound_and_stays_right(tmp_path: Path, s3: None) -> None:
    root = images(tmp_path / "pets", "a", "b", count=20)
    bucket("kept", root)
    sizes = [file.stat().st_size for file in root.rglob("*.png")]
    bound = sum(sizes) / 2e9
    data = ImageDataModule("image_folder", root="s3://kept", image_size=8, num_workers=2, cache_gb=bound)
    on_disk = ImageDataModule("image_folder", root=root, image_size=8, num_workers=0)
    assert data.digests == on_disk.digests
    before = {file.name for file in cache_folder().rglob("objects/*/*")}
    for _ in range(2):
        for (batch, labels), (same, as_labels) in zip(data.train_dataloader(), on_disk.train_dataloader(), strict=True):
            assert batch.equal(same) and labels.equal(as_labels)
    kept = list(cache_folder().rglob("objects/*/*"))
    assert bound * 1e9 / 2 < sum(file.stat().st_size for file in kept) <= bound * 1e9
    assert {file.name for file in kept} == before  # a part that changes all the time would be found less often
    # Another set drives out what nobody uses any more, and not more.
    images(tmp_path / "others", "c", "d", count=5, start=300)
    bucket("others", tmp_path / "others")
    assert ImageDataModule("image_folder", root="s3://others", cache_gb=bound).image_set.hashes
    now = {file.name for file in cache_folder().rglob("objects/*/*")}
    assert len(now - before) == 10 and now & before
    nothing = ImageDataModule("image_folder", root="s3://others", image_size=8, num_workers=0, cache_gb=0)
    assert len(next(iter(nothing.train_dataloader()))[1]) == len(nothing.splits.train)


def use_cache(number: int, bound: int, folder: Path) -> int:
    """Keeps and opens objects as fast as it can; returns how many it found whole."""
    cache, found = ByteCache(bound, folder), 0
    draw = np.random.default_rng(number)
    for turn in range(300):
        content = draw.integers(0, 12) * np.ones(1000, np.uint8)
        name = hashlib.sha256(content.tobytes()).hexdigest()
        cache._started += 10**12  # as if each were a run of its own, which may drive out all others
        cache.keep(name, content.tobytes())
        opened = cache.open(hashlib.sha256(np.full(1000, turn % 12).astype(np.int64).tobytes()).hexdigest())
        if (file := cache.open(name)) is not None:
            with file:
                assert hashlib.sha256(file.read()).hexdigest() == name
                found += 1
        if opened is not None:
            opened.close()
    return found


def test_several_processes_share_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "_LOOK_EVERY", 0.0)
    bound = 8_000 * 9
    with ProcessPoolExecutor(4, get_context("fork")) as pool:
        found = list(pool.map(use_cache, range(4), [bound] * 4, [tmp_path] * 4))
    assert min(found) > 100
    left = sum(file.stat().st_size for file in tmp_path.rglob("objects/*/*"))
    assert 0 < left <= bound and not list(tmp_path.rglob("*.tmp"))
    assert int((tmp_path / "used").read_text()) == left


def test_an_object_that_changes_or_is_cut_short_is_told(
    tmp_path: Path, s3: None, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_SECONDS_BETWEEN", 0.0)
    client = bucket("kept", images(tmp_path / "pets", "a", "b"))
    data = ImageDataModule("image_folder", root="s3://kept", image_size=8, num_workers=1)
    assert data.splits
    shutil.rmtree(cache_folder() / "objects")
    for path in data.image_set.paths:
        client.put_object(
            Bucket="kept", Key=path, Body=images(tmp_path / "other", "a.png", start=99).joinpath("a.png").read_bytes()
        )
    with pytest.raises(UsageError, match=r"^s3://kept/[ab]/\d.png: has (other bytes|[\d,]+ bytes and was listed)"):
        next(iter(data.train_dataloader()))
    images(tmp_path / "web" / "pets", "a", "b")
    web.cut.add("/pets/b/3.png")
    with pytest.raises(UsageError, match=rf"^{web.address}/pets/b/3.png: has \d+ bytes and was listed with [\d,]+: it"):
        load_image_set("image_folder", place_of(f"{web.address}/pets"))
    web.cut.clear()  # what was read before is not read again
    web.asked.clear()
    assert len(load_image_set("image_folder", place_of(f"{web.address}/pets")).paths) == 12
    assert sum(path.endswith(".png") for method, path in web.asked if method == "GET") < 12


MISTAKES = {
    "s3://nobucket/pets": "there is no such bucket; check the address",
    "s3://kept/nothing": "nothing is there; check the address",
    "s3://kept/a/0.png": "is one file; give a folder",
    "s3://": "names no bucket",
    "s3:///pets": "names no bucket",
    "foo://x/pets": "nothing is known of foo://; give a folder, or an address",
    "gs://x/pets": "gs:// needs gcsfs; pip install gcsfs",
    "http://127.0.0.1:9/pets": "cannot be reached (",
    "http://127.0.0.1:9/pets?signature=verysecret": "is one file's address with a query",
    "http://me:verysecret@127.0.0.1:9/pets": "cannot be reached (",
}


@pytest.mark.parametrize("address", MISTAKES)
def test_a_wrong_address_is_one_line(address: str, tmp_path: Path, s3: None) -> None:
    bucket("kept", images(tmp_path / "pets", "a", "b"))
    with pytest.raises(UsageError) as refused:
        _ = ImageDataModule("image_folder", root=address).image_set
    shown = address.replace("me:verysecret@", "").removesuffix("?signature=verysecret")
    line = str(refused.value)
    assert line.startswith(f"root={shown}: {MISTAKES[address]}") and "\n" not in line and "verysecret" not in line


def test_no_login_no_right_and_no_answer_are_one_line(
    tmp_path: Path, s3: None, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket("kept", images(tmp_path / "web" / "pets", "a", "b"))
    web.password = "other"
    with pytest.raises(UsageError, match=r"pets: access is refused \(HTTP 401\); log in"):
        load_image_set("image_folder", place_of(f"{web.address}/pets"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    with pytest.raises(UsageError, match=r"^root=s3://kept: there are no credentials for it \(.*; set AWS_PROFILE, or"):
        load_image_set("image_folder", place_of("s3://kept"))
    monkeypatch.setattr(places, "_CONTACT_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/pets"
        with pytest.raises(UsageError, match=r"pets: cannot be reached .no answer within 0.5 seconds.; check"):
            load_image_set("image_folder", place_of(address))


def test_what_is_on_disk_only_is_refused(tmp_path: Path, s3: None) -> None:
    file = tmp_path / "list.parquet"
    parquet.write_table(pa.table({"image": [b"1", b"2"], "label": ["a", "b"]}), file)
    bucket("kept", tmp_path)
    for dataset, options, line in (
        ("idx", {}, "`?root=s3://kept/list.parquet: `?dataset=idx`? is read from this machine's disk; copy it here"),
        ("manifest", {}, "root=s3://kept/list.parquet: column image holds images themselves"),
        ("manifest", {"outside_root": True}, "outside_root=True: from an address no other files"),
    ):
        with pytest.raises(UsageError, match=line):
            _ = ImageDataModule(dataset, root="s3://kept/list.parquet", **options).image_set  # type: ignore[arg-type]
    for cache_gb, root, line in ((-1.0, "s3://kept", "give gigabytes"), (1.0, tmp_path, "keeps images of an address")):
        with pytest.raises(UsageError, match=f"cache_gb={cache_gb:g}: {line}"):
            ImageDataModule("image_folder", root=root, cache_gb=cache_gb)


def test_names_that_no_file_can_have_are_passed_over_with_a_word(tmp_path: Path, s3: None) -> None:
    root = images(tmp_path / "pets", "a", "b")
    client = bucket("kept", root)
    odd = ("a/../../escaped.png", "a//1.png", f"a/{'x' * 300}.png", "a/0.png/inside.png")
    for name in (*odd, "c/", "a/"):
        client.put_object(Bucket="kept", Key=name, Body=b"" if name.endswith("/") else b"odd")
    found = load_image_set("image_folder", place_of("s3://kept"), checked=False)
    assert list(found.paths) == [f"{name}/{number}.png" for name in "ab" for number in range(6)]
    assert {one.kind: one.cases for one in found.findings} == {
        "odd_name": tuple((name,) for name in sorted(odd)),
        "empty_class": (("c",),),
    }
    assert "class folder s3://kept/c holds no images" in found.findings[0].message
    assert not list(tmp_path.rglob("escaped*"))


def test_an_encrypted_object_has_an_etag_that_is_no_md5(tmp_path: Path, s3: None) -> None:
    bucket("kept", images(tmp_path / "pets", "a", "b"))
    place = places.Place("s3://kept")
    files = [file._replace(md5="0" * 32) for file in place.files()]
    assert place.read(files[0]) == (tmp_path / "pets" / files[0].path).read_bytes()
    assert place._md5_is_none
    images_there = RemoteImages(place, files, [""] * 12, ByteCache(0), 1)
    assert images_there[3].shape == (20, 24, 1)


@pytest.mark.parametrize("kind", ["s3", "web"])
def test_a_run_elsewhere_is_the_run_on_disk_and_tells_no_secret(
    kind: str, tmp_path: Path, empty_store: None, s3: None, web: Web, capfd: pytest.CaptureFixture[str]
) -> None:
    root = images(tmp_path / "web" / "pets", "a", "b", count=25)
    bucket("kept", root, "pets/")
    web.password = "verysecret"
    address = web.address.replace("http://", "http://me:verysecret@") + "/pets" if kind == "web" else "s3://kept/pets"
    options = (
        "--trainer.max_epochs=2",
        "--data.image_size=32",
        "--model.arch=lenet5",
        "--model.weights=null",
        "--report=false",
    )
    weights = []
    for place, num_workers in ((str(root), 0), (address, 1)):
        assert main(["fit", place, *options, f"--data.num_workers={num_workers}"]) == 0
        checkpoints = (tmp_path / "mlruns" / "journal").glob("*/last.ckpt")
        weights.append(load_checkpoint(max(checkpoints, key=os.path.getmtime))["state_dict"])
    assert all(weights[0][name].equal(weights[1][name]) for name in weights[0])
    assert "verysecret" not in "".join(capfd.readouterr())
    assert [file for file in tmp_path.rglob("*") if file.is_file() and b"verysecret" in file.read_bytes()] == []
    assert main(["check-data", address, "--strict"]) == 0
    assert "Nothing is wrong with the images (train 36" in capfd.readouterr().out
    run = max((tmp_path / "mlruns" / "journal").glob("*/last.ckpt"), key=os.path.getmtime)
    for place, file in ((address, "there.csv"), (str(root), "here.csv")):
        assert main(["predict", place, "--ckpt_path", str(run), "--output", file, "--num_workers", "1"]) == 0
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
