"""A folder of images in which something of every kind is wrong, made of photographs."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageEnhance
from sklearn.datasets import load_sample_images


def photographs(count: int, size: int = 96) -> list[np.ndarray]:
    """Different squares of scikit-learn's two photographs, `(size, size, 3)` uint8."""
    draw = np.random.default_rng(0)
    flower, temple = (np.asarray(image) for image in load_sample_images().images)
    squares = []
    for number in range(count):
        image = (flower, temple)[number % 2]
        top, left = (int(draw.integers(0, side - 200)) for side in image.shape[:2])
        square = Image.fromarray(image[top : top + 200, left : left + 200])
        squares.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
    return squares


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A PNG that is a few kilobytes long and white all over, once it has been decoded."""
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(b"\xff" * (width // 8 + 1)) for _ in range(height)) + rows.flush()

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def _cut(file_format: str, share: float, **options: Any) -> Callable[[Image.Image], bytes]:
    def make(image: Image.Image) -> bytes:
        content = encoded(image, file_format, **options)
        return content[: int(len(content) * share)]

    return make


def _broken_png(image: Image.Image) -> bytes:
    content = bytearray(encoded(image, "png"))
    content[len(content) // 2] ^= 0xFF
    return bytes(content)


def _marked_noise(image: Image.Image) -> bytes:
    return b"\xff\xd8\xff\xe0" + np.random.default_rng(1).bytes(4000)


def _gif_of_claimed_size(image: Image.Image) -> bytes:
    size, claimed = struct.pack("<HH", *image.size), struct.pack("<HH", 60_000, 60_000)
    return encoded(image.convert("P"), "gif").replace(size, claimed)


def _of_type(dtype: type) -> Callable[[Image.Image], bytes]:
    return lambda image: encoded(Image.fromarray(np.asarray(image.convert("L"), dtype)), "tiff")


def _tiff(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    kind = "rgb" if pixels.ndim == 3 and pixels.shape[2] == 3 else "minisblack"
    tifffile.imwrite(buffer, pixels, photometric=kind, planarconfig="contig" if pixels.ndim == 3 else None)
    return buffer.getvalue()


def _jp2_of_claimed_size(image: Image.Image) -> bytes:
    """A JPEG 2000 that Pillow's own limit lets pass: it would take 1.6 GiB to decode."""
    content = bytearray(encoded(image.convert("RGB"), "jpeg2000"))
    size = content.find(b"\xff\x4f\xff\x51")  # of the image, and of its one tile, in the code stream; and in the header
    for place in (size + 8, size + 24, content.find(b"ihdr") + 4):
        struct.pack_into(">II", content, place, 9_400, 9_400)
    return bytes(content)


# Files that cannot be trained on: name -> (how the content is made of a photograph, the kind it is found as).
UNUSABLE: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "zero_bytes.jpg": (lambda image: b"", "empty_file"),
    "cut.jpg": (_cut("jpeg", 0.5), "truncated"),
    "only_a_header.jpg": (lambda image: encoded(image, "jpeg")[:20], "not_an_image|truncated|damaged"),
    "cut.png": (_cut("png", 0.5), "truncated"),
    "cut.gif": (_cut("gif", 0.5), "truncated"),
    "cut.bmp": (_cut("bmp", 0.5), "truncated"),
    "cut.webp": (_cut("webp", 0.5), "truncated|damaged"),
    "cut.tif": (_cut("tiff", 0.5), "truncated|damaged"),
    "cut.avif": (_cut("avif", 0.6), "truncated|damaged|not_an_image"),
    "cut.ppm": (_cut("ppm", 0.5), "truncated"),
    "broken.png": (_broken_png, "damaged|truncated"),
    "notes.jpg": (lambda image: b"Misty slept all day.\n" * 40, "not_an_image"),
    "error_page.png": (lambda image: b"<!DOCTYPE html><html>404</html>", "not_an_image"),
    "scan.jpg": (lambda image: b"%PDF-1.7\n" + bytes(600), "not_an_image"),
    "album.jpg": (lambda image: b"PK\x03\x04" + bytes(600), "not_an_image"),
    "postscript.jpg": (lambda image: encoded(image.convert("RGB"), "eps"), "not_an_image"),
    "texture.jpg": (lambda image: encoded(image.convert("RGB"), "dds"), "unread_format"),
    "phone.jpg": (lambda image: b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600), "unread_format|damaged"),
    "jpeg_xl.jpg": (lambda image: b"\xff\x0a" + bytes(600), "unread_format"),
    "layers.png": (lambda image: b"8BPS\x00\x01" + bytes(600), "unread_format"),
    "pointer.jpg": (
        lambda image: b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n",
        "pointer",
    ),
    "bands.tif": (lambda image: _tiff(np.dstack([np.asarray(image.convert("RGBA"))] * 2)), "unsupported_pixels"),
    "double.tif": (lambda image: _tiff(np.asarray(image.convert("L"), np.float64)), "unsupported_pixels"),
    "float_rgb.tif": (lambda image: _tiff(np.asarray(image.convert("RGB"), np.float32)), "unsupported_pixels"),
    "signed.tif": (lambda image: _tiff(np.asarray(image.convert("L")).astype(np.int8)), "unsupported_pixels"),
    "bomb.jp2": (_jp2_of_claimed_size, "too_many_pixels"),
    "cut.jp2": (_cut("jpeg2000", 0.5), "truncated|damaged"),
    "cut.tga": (_cut("tga", 0.5), "truncated"),
    "noise.jpg": (lambda image: np.random.default_rng(1).bytes(4000), "not_an_image"),
    "mark_and_noise.jpg": (_marked_noise, "damaged|not_an_image|truncated"),
    "bomb.png": (lambda image: png_of_claimed_size(20_000, 20_000), "too_many_pixels"),
    "bomb.gif": (_gif_of_claimed_size, "too_many_pixels"),
    "float.tif": (_of_type(np.float32), "unsupported_pixels"),
    "deep.tif": (_of_type(np.int32), "unsupported_pixels"),
}


def _frames(image: Image.Image) -> list[Image.Image]:
    return [image, image.transpose(Image.Transpose.ROTATE_90), image.transpose(Image.Transpose.ROTATE_180)]


def _moving(file_format: str) -> Callable[[Image.Image], bytes]:
    return lambda image: encoded(
        _frames(image)[0], file_format, save_all=True, append_images=_frames(image)[1:], duration=80
    )


# Files that can be trained on, and that are odd.
ODD: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "one_pixel.png": (lambda image: encoded(image.resize((1, 1)), "png"), "tiny"),
    "thin.png": (lambda image: encoded(image.resize((400, 9)), "png"), "long_shape"),
    "white.png": (lambda image: encoded(Image.new("RGB", (80, 80), "white"), "png"), "flat"),
    "moving.gif": (_moving("gif"), "animated"),
    "moving.webp": (_moving("webp"), "animated"),
    "moving.png": (_moving("png"), "animated"),
    "pages.tif": (_moving("tiff"), "several_pages"),
    "really_a_png.jpg": (lambda image: encoded(image, "png"), "other_suffix"),
    "wavelets.jpg": (lambda image: encoded(image.convert("RGB"), "jpeg2000"), "other_suffix"),
}


def write_corpus(root: Path, with_unusable: bool = True) -> dict[str, str]:
    """Writes a folder of images with splits and everything that can be wrong with it.

    Args:
        root: The folder, not there yet.
        with_unusable: Whether to write what cannot be trained on.

    Returns:
        Path, relative to the folder -> the kind that it has to be found as; several kinds that would do, with |.
    """
    squares = iter(map(Image.fromarray, photographs(120)))
    expected: dict[str, str] = {}
    for split, per_class in (("train", 12), ("val", 3), ("test", 3)):
        for name in ("misty", "tigga"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(per_class):
                next(squares).save(folder / f"{number:02}.png")
    for file, (make, kind) in {**(UNUSABLE if with_unusable else {}), **ODD}.items():
        (root / "train" / "misty" / file).write_bytes(make(next(squares)))
        expected[f"train/misty/{file}"] = kind
    train, test = root / "train", root / "test"

    def copy(source: Path, target: Path, kind: str) -> None:
        target.write_bytes(source.read_bytes())
        expected[target.relative_to(root).as_posix()] = kind

    copy(train / "misty" / "00.png", train / "misty" / "again.png", "duplicate")
    copy(train / "misty" / "01.png", test / "misty" / "known.png", "duplicate_across_splits")
    copy(train / "misty" / "02.png", train / "tigga" / "whose.png", "label_conflict")

    known = [Image.open(train / "tigga" / f"0{number}.png") for number in (3, 4, 5)]
    for target, kind, changed in (
        (train / "tigga" / "smaller.jpg", "near_duplicate", known[0].resize((64, 64))),
        (test / "tigga" / "gray.jpg", "near_duplicate_across_splits", known[1].convert("L")),
        (train / "misty" / "pale.jpg", "near_label_conflict", ImageEnhance.Contrast(known[2]).enhance(0.9)),
    ):
        changed.save(target, quality=60)
        expected[target.relative_to(root).as_posix()] = kind
    (train / "misty" / "nowhere.png").symlink_to("gone.png")
    (train / "misty" / "ring.png").symlink_to("ring.png")
    outside = root.parent / "outside.png"
    next(squares).save(outside)
    (train / "misty" / "outside.png").symlink_to(outside)
    os.mkfifo(train / "misty" / "pipe.png")
    (train / "misty" / "photo.jxl").write_bytes(UNUSABLE["jpeg_xl.jpg"][0](next(squares)))
    (train / "misty" / "notes.txt").write_text("no image")
    (train / "misty" / "@eaDir").mkdir()
    next(squares).save(train / "misty" / "@eaDir" / "SYNOPHOTO_THUMB_M.jpg")
    next(squares).save(train / "loose.png")
    for file, kind in {
        "train/misty/nowhere.png": "dangling_link",
        "train/misty/ring.png": "dangling_link",
        "train/misty/outside.png": "outward_link",
        "train/misty/pipe.png": "special_file",
        "train/misty/photo.jxl": "unread_file",
        "train/misty/notes.txt": "other_file",
        "train/misty/@eaDir": "system_file",
        "train/loose.png": "loose_image",
    }.items():
        expected[file] = kind
    return expected
