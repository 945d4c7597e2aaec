"""What is seen of damaged, disguised and odd files, and what looking at them costs."""

import base64
import io
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from lit_cnn.cli import main
from lit_cnn.data import inspection
from lit_cnn.data.file_kinds import HAS_HEIF
from lit_cnn.data.inspection import Inspection, cache_path, inspect_file, inspect_images
from lit_cnn.data.sources import load_image_set, read_image
from tests.bad_files import ODD, UNUSABLE, encoded, photographs
from tests.data.test_datasets import refused, save_images
from tests.runs import SHORT

PHOTOGRAPH = Image.fromarray(photographs(1)[0])
# 32 x 24 px, red on the left and blue on the right.
HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoAABAAAAAAAAAOUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAA"
    "AADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    "AChjbGFwAAAAIAAAAAEAAAAYAAAAAf///+AAAAAC////2AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAA7W"
    "1kYXQAAADhKAGvBPIdBAeQcWTS3/yXf///K03sv5LqPDA/s6KH3+B73//xkBRGMjfoLWF5a4oVgXOH4X8n4//JiUKNncss9wi1pCS6CW83zw81"
    "mGYW0Gspte2uW1k5LPTAGDC8WUrnkXV4nsKFxLa9C0BHAcLIcMx3+rGIkvbAiUvU7sLpM2Cl3j8YsedBLuaqme4jva0lcjt6wrGukNttH1abuK"
    "pdErYOweyRG9YYARmG1P/Fk37lV53zz75VmShdkw8cBOznMzqd+FFVuI7wJd+Nugy/B1aYYP2RqS4c1XxserzrFGQG"
)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield


def looked_at(content: bytes, full: bool = True) -> Inspection:
    return inspect_file(io.BytesIO(content), full)


def _cost(path: Path, results: "multiprocessing.Queue[tuple[str, float, float]]") -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with path.open("rb") as file:
        fault = inspect_file(file, full=True).fault
    seconds = time.perf_counter() - started
    results.put((fault, seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def in_a_process_of_its_own(path: Path) -> tuple[str, float, float]:
    """Looks at a file; returns its fault, the seconds and the MiB by which the process's memory grew."""
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[tuple[str, float, float]] = context.Queue()
    child = context.Process(target=_cost, args=(path, results))
    child.start()
    found = results.get(timeout=60)
    child.join()
    return found


def test_there_are_enough_kinds_of_unusable_files() -> None:
    assert len(UNUSABLE) >= 25


@pytest.mark.parametrize("name", UNUSABLE)
def test_every_unusable_file_is_named_for_what_it_is_and_costs_little(name: str, tmp_path: Path) -> None:
    make, kinds = UNUSABLE[name]
    (tmp_path / name).write_bytes(make(PHOTOGRAPH))
    assert name in refused(read_image, tmp_path / name, 3)
    fault, seconds, mebibytes = in_a_process_of_its_own(tmp_path / name)
    assert fault in kinds.split("|")
    assert seconds < 1 and mebibytes < 500


@pytest.mark.parametrize("name", ["zero_bytes.jpg", "notes.jpg", "scan.jpg", "bomb.png", "float.tif", "deep.tif"])
def test_a_header_tells_without_decoding(name: str) -> None:
    make, kind = UNUSABLE[name]
    assert looked_at(make(PHOTOGRAPH), full=False).fault == kind


@pytest.mark.parametrize("in_channels", [1, 3])
def test_a_lab_image_is_good_for_the_look_and_for_training(in_channels: int, tmp_path: Path) -> None:
    lab = ImageCms.profileToProfile(
        PHOTOGRAPH, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "lab.tif")
    assert looked_at((tmp_path / "lab.tif").read_bytes()).fault == ""
    expected = np.asarray(PHOTOGRAPH.convert("L") if in_channels == 1 else PHOTOGRAPH).reshape(96, 96, in_channels)
    assert np.abs(read_image(tmp_path / "lab.tif", in_channels) - expected.astype(int)).mean() < 5


def test_a_large_image_that_stands_upright_is_not_copied(tmp_path: Path) -> None:
    Image.new("RGBA", (4000, 4000), "red").save(tmp_path / "large.png")
    fault, _, mebibytes = in_a_process_of_its_own(tmp_path / "large.png")
    # 61 MiB as RGBA and 15 MiB as gray; a copy would be another 61.
    assert fault == "" and mebibytes < 130


def test_of_large_images_one_is_decoded_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(PHOTOGRAPH, "png")
    monkeypatch.setattr(inspection, "_LARGE", 96 * 96 - 1)
    looks = [threading.Thread(target=looked_at, args=(content,)) for _ in range(2)]
    with inspection._ONE_LARGE:
        for look in looks:
            look.start()
        assert looked_at(content, full=False).fault == "", "a header is read all the same"
        looks[0].join(0.5)
        assert all(look.is_alive() for look in looks)
    for look in looks:
        look.join(30)
        assert not look.is_alive()


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_can_be_trained_on(name: str) -> None:
    seen = looked_at(ODD[name][0](PHOTOGRAPH))
    assert seen.fault == "" and len(seen.phash) == 16 and len(seen.thumbnail) == 256
    assert seen.is_flat == (name in ("white.png", "one_pixel.png"))
    assert seen.num_frames == (3 if name.startswith(("moving", "pages")) else 1)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"hello", "text"),
        ("Grüße".encode(), "text"),
        (b" \n<html>", "a web page"),
        (b"\x00\x01" * 50, "something else"),
    ],
)
def test_what_is_no_image_is_told_by_its_first_bytes(content: bytes, kind: str) -> None:
    assert looked_at(content).reason == f"it is {kind}"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("phone.jpg", ("HEIC",) if HAS_HEIF else ("it is HEIC", "pip install 'lit-cnn[heif]'", "convert it to JPEG")),
        ("jpeg_xl.jpg", ("it is JPEG XL", "convert it to JPEG or PNG")),
        ("layers.png", ("it is Photoshop's PSD", "convert it")),
        ("pointer.jpg", ("it is a pointer of Git LFS", "run git lfs pull")),
        ("bands.tif", ("8 channels of 8 bits", "save it with 1 or 3 channels")),
        ("double.tif", ("1 channel of 64 bits, floating-point", "save it with 1 or 3 channels")),
        ("float_rgb.tif", ("3 channels of 32 bits, floating-point", "save it with 1 or 3 channels")),
        ("signed.tif", ("signed pixels of 8 bits are not read", "save it with 8 or 16 bits a channel")),
    ],
)
def test_an_image_that_is_not_read_is_named_with_the_way_out(
    name: str, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = save_images(tmp_path / "pets", *(f"{label}/{number}.png" for label in "ab" for number in range(4)))
    (root / "a" / name).write_bytes(UNUSABLE[name][0](PHOTOGRAPH))
    assert main(["fit", *SHORT, "--data.dataset=image_folder", f"--data.root={root}", "--data.limit_train=null"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    decoded = refused(read_image, root / "a" / name, 3)
    assert all(word in told for word in words for told in (line, decoded)) and name in line


@pytest.mark.skipif(not HAS_HEIF, reason="the extra heif is not installed")
def test_heic_is_read(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(base64.b64decode(HEIC))
    pixels = read_image(tmp_path / "photo.jpg", 3)
    assert pixels.shape == (24, 32, 3) and pixels[12, 8].tolist() == pytest.approx([255, 0, 0], abs=9)
    assert pixels[12, 24].tolist() == pytest.approx([0, 0, 255], abs=9)
    assert looked_at((tmp_path / "photo.jpg").read_bytes()).file_format == "HEIF"


def test_size_and_format_are_those_of_the_file() -> None:
    seen = looked_at(encoded(PHOTOGRAPH.resize((60, 40)), "jpeg"), full=False)
    assert (seen.width, seen.height, seen.file_format, seen.is_full, seen.phash) == (60, 40, "JPEG", False, "")


@pytest.mark.usefixtures("own_cache")
def test_what_was_seen_once_is_not_looked_at_again(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for number, name in enumerate(("a/1.png", "b/2.png")):
        (root / name).parent.mkdir(parents=True)
        PHOTOGRAPH.rotate(90 * number).save(root / name)
    first = inspect_images(load_image_set("image_folder", root), full=True)
    assert [one.fault for one in first] == ["", ""] and cache_path().is_relative_to(tmp_path)
    again = load_image_set("image_folder", root)
    # Other bytes behind the hash that is known: who reads them again finds them damaged.
    (root / "a/1.png").write_bytes(bytes((root / "a/1.png").stat().st_size))
    assert inspect_images(again, full=True) == first
    assert [(one.fault, one.width) for one in inspect_images(again, full=False)] == [("", 96)] * 2
    assert [one.fault for one in inspect_images(load_image_set("image_folder", root), full=True)] == [
        "not_an_image",
        "",
    ]


@pytest.mark.usefixtures("own_cache")
def test_a_header_that_is_remembered_does_not_stand_for_a_full_look(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "a/1.png", "b/2.png")
    (root / "a" / "cut.jpg").write_bytes(UNUSABLE["cut.jpg"][0](PHOTOGRAPH))
    pets = load_image_set("image_folder", root)
    assert [one.fault for one in inspect_images(pets, full=False)] == [""] * 3
    assert [one.fault for one in inspect_images(pets, full=True)] == ["", "truncated", ""]
    assert [one.fault for one in inspect_images(pets, full=False)] == ["", "truncated", ""]


@pytest.mark.usefixtures("own_cache")
def test_the_limit_of_pixels_is_that_of_today(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "a/1.png", "b/2.png")
    PHOTOGRAPH.save(root / "a" / "large.png")
    for limit, faults in ((10_000, ["", "", ""]), (9_000, ["", "too_many_pixels", ""]), (9_216, ["", "", ""])):
        pets = load_image_set("image_folder", root, max_pixels=limit)
        assert [one.fault for one in inspect_images(pets, full=True)] == faults
        if any(faults):
            assert "more pixels than max_pixels=9000" in refused(pets.images.__getitem__, 1)
    load_image_set("digits")  # the limit holds for the process: put it back


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not stop root")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    root = save_images(tmp_path / "pets", "a/1.png", "b/2.png")
    (root / "a" / "1.png").chmod(0)
    (one, other) = inspect_images(load_image_set("image_folder", root), full=False)
    assert (one.fault, one.reason, other.fault) == ("unreadable", "Permission denied", "")


@pytest.mark.usefixtures("own_cache")
def test_a_file_that_is_gone_by_now_is_unreadable(tmp_path: Path) -> None:
    pets = load_image_set("image_folder", save_images(tmp_path / "pets", "a/1.png", "b/2.png"))
    (tmp_path / "pets" / "a" / "1.png").unlink()
    one, other = inspect_images(pets, full=True)
    assert (one.fault, one.reason, other.fault) == ("unreadable", "No such file or directory", "")
    assert "cannot be read (No such file" in refused(pets.images.__getitem__, 0)


def test_images_in_memory_have_no_header() -> None:
    digits = load_image_set("digits")
    assert set(inspect_images(digits, full=False)) == {Inspection()}
    assert np.unique([one.width for one in inspect_images(digits, full=True)]).tolist() == [8]
