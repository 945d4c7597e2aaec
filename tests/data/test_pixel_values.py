"""What values in image files become where a file alone does not say it: `pixel_range` and `background`."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.pixel_values import PixelOptions, pixel_options, scaled, suggested_range
from lit_cnn.data.sources import read_image

TWELVE = PixelOptions((0.0, 4095.0))
GRAY = np.random.default_rng(0).integers(0, 4096, (6, 8), np.uint16)
RGB = np.random.default_rng(1).integers(0, 4096, (6, 8, 3), np.uint16)
OPAQUE = np.dstack([RGB, np.full((6, 8), 65535, np.uint16)])


def pnm(kind: str, pixels: np.ndarray, maximum: int) -> bytes:
    return f"{kind} 8 6 {maximum}\n".encode() + pixels.astype(">u2").tobytes()


def png(pixels: np.ndarray, color_type: int, transparent: np.ndarray | None = None) -> bytes:
    """Returns a PNG of 16 bits; OpenCV writes none with a tRNS chunk, or of gray with alpha."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, color_type, 0, 0, 0)
    key = b"" if transparent is None else chunk(b"tRNS", transparent.astype(">u2").tobytes())
    ends = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + ends


def tiff(pixels: np.ndarray, **options: Any) -> Callable[[Path], object]:
    return lambda path: tifffile.imwrite(path, pixels, **options)


# What a file of 12 bits is written as: gray, or red, green and blue.
DEEP: dict[str, tuple[np.ndarray, Callable[[Path], object]]] = {
    "gray.png": (GRAY, lambda path: cv2.imwrite(str(path), GRAY)),
    "rgb.png": (RGB, lambda path: cv2.imwrite(str(path), RGB[..., ::-1])),
    "rgba.png": (RGB, lambda path: cv2.imwrite(str(path), OPAQUE[..., [2, 1, 0, 3]])),
    "la.png": (GRAY, lambda path: path.write_bytes(png(np.dstack([GRAY, GRAY | 65535]), 4))),
    "key.png": (GRAY, lambda path: path.write_bytes(png(GRAY, 0, GRAY[0, :1]))),
    "gray.tif": (GRAY, tiff(GRAY)),
    "big.tif": (GRAY, tiff(GRAY, byteorder=">")),
    "rgb.tif": (RGB, tiff(RGB, photometric="rgb")),
    "zip.tif": (RGB, tiff(RGB, photometric="rgb", compression="zlib")),
    "nir.tif": (RGB, tiff(OPAQUE, photometric="rgb", extrasamples=[0])),
    "rgba.tif": (RGB, tiff(OPAQUE, photometric="rgb", extrasamples=[2])),
    "float.tif": (GRAY, tiff(GRAY.astype(np.float32))),
    "signed.tif": (GRAY, tiff(GRAY.astype(np.int16))),
    "long.tif": (GRAY, tiff(GRAY.astype(np.uint32))),
    "full.pgm": (GRAY, lambda path: path.write_bytes(pnm("P5", GRAY, 65535))),
    "twelve.pgm": (GRAY, lambda path: path.write_bytes(pnm("P5", GRAY, 4095))),
    "full.ppm": (RGB, lambda path: path.write_bytes(pnm("P6", RGB, 65535))),
    "twelve.ppm": (RGB, lambda path: path.write_bytes(pnm("P6", RGB, 4095))),
    "float.pfm": (GRAY, lambda path: path.write_bytes(b"Pf\n8 6\n-1.0\n" + GRAY[::-1].astype("<f4").tobytes())),
}
UNSAID = ("float.tif", "signed.tif", "long.tif", "float.pfm")


@pytest.mark.parametrize("name", DEEP)
def test_a_range_becomes_0_to_255_in_every_kind_of_file(name: str, tmp_path: Path) -> None:
    pixels, write = DEEP[name]
    write(path := tmp_path / name)
    expected = np.rint(pixels / np.float64(4095) * 255)
    np.testing.assert_array_equal(
        read_image(path, 3, TWELVE), expected if expected.ndim == 3 else np.dstack([expected] * 3)
    )
    luma = expected if expected.ndim == 2 else expected @ [0.299, 0.587, 0.114]
    assert np.abs(read_image(path, 1, TWELVE)[..., 0] - luma).max() <= 1
    if name in UNSAID:
        with pytest.raises(UsageError, match="no range to scale from"):
            read_image(path, 3)
    else:  # nothing has changed where no range is given
        high = read_image(path, 3).astype(int)
        assert (
            np.abs(
                high - (expected[..., None] if expected.ndim == 2 else expected) * (1 if "twelve" in name else 1 / 16)
            ).max()
            <= 1
        )


def test_a_range_cuts_what_lies_outside_and_turns_and_leaves_8_bits_alone(tmp_path: Path) -> None:
    values = np.array([[-1000, -160, 40, 240, 3000]], np.int16)
    tifffile.imwrite(tmp_path / "ct.tif", values)
    window = PixelOptions((-160.0, 240.0))
    assert read_image(tmp_path / "ct.tif", 1, window)[..., 0].tolist() == [[0, 0, 128, 255, 255]]
    floats = np.array([[np.nan, -np.inf, 0.25, np.inf]], np.float32)
    tifffile.imwrite(tmp_path / "nan.tif", floats)
    assert read_image(tmp_path / "nan.tif", 1, PixelOptions((0.0, 0.5)))[..., 0].tolist() == [[0, 0, 128, 255]]
    for mode, pixels in (("gray", GRAY), ("rgb", (RGB >> 8).astype(np.uint8))):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # a quarter turn to the right
        Image.fromarray(pixels).save(tmp_path / f"{mode}.png", exif=exif)
        turned = read_image(tmp_path / f"{mode}.png", 3, TWELVE)
        as_8_bit = np.rint(pixels / 4095 * 255) if mode == "gray" else pixels
        expected = np.rot90(as_8_bit, -1)
        np.testing.assert_array_equal(turned, expected if mode == "rgb" else np.dstack([expected] * 3))


@pytest.mark.parametrize("damage", [0.6, 0.9])
def test_a_damaged_file_of_16_bits_is_refused_whatever_the_options(damage: float, tmp_path: Path) -> None:
    # OpenCV would fill up with black what is missing.
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 64, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "whole.png"), pixels)
    content = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: int(damage * len(content))])
    for options in (PixelOptions(), TWELVE):
        with pytest.raises(UsageError, match="cannot be decoded"):
            read_image(tmp_path / "cut.png", 3, options)


def test_16_bit_colour_that_would_be_noise_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "planes.tif", RGB.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    with pytest.raises(UsageError, match="separate planes"):
        read_image(tmp_path / "planes.tif", 3)


STROKE = np.zeros((6, 8, 4), np.uint8)
STROKE[2:4, :, 3] = 255
STROKE[4, :, 3] = 51  # a fifth


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "avif"])
def test_a_background_lies_behind_what_is_transparent(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(STROKE).save(
        path := tmp_path / f"stroke.{suffix}",
        **({"lossless": True} if suffix == "webp" else {"quality": 100} if suffix == "avif" else {}),
    )
    assert not read_image(path, 3).any()
    white = read_image(path, 1, pixel_options(None, "white"))[..., 0]
    tolerance = 4 if suffix == "avif" else 0
    assert np.abs(white[:, 0].astype(int) - [255, 255, 0, 0, 204, 255]).max() <= tolerance
    orange = read_image(path, 3, pixel_options(None, [255, 128, 0]))
    assert np.abs(orange[0, 0].astype(int) - [255, 128, 0]).max() <= tolerance and orange[2].max() <= tolerance


def test_a_background_lies_behind_palettes_keys_and_16_bits(tmp_path: Path) -> None:
    palette = Image.fromarray((STROKE[..., 3] > 100).astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    Image.fromarray(STROKE[..., 2:]).save(tmp_path / "la.png")
    key = np.where(STROKE[..., 3] > 100, 4000, 0).astype(np.uint16)
    (tmp_path / "key.png").write_bytes(png(key, 0, np.array([0])))
    (tmp_path / "rgb.png").write_bytes(png(np.dstack([key] * 3), 2, np.array([300, 300, 300]) * 0))
    for name in ("palette.png", "palette.gif", "la.png", "key.png", "rgb.png"):
        for range_ in (None, [0, 4000]):
            seen = read_image(tmp_path / name, 3, pixel_options(range_, "white"))
            assert seen[0, 0].tolist() == [255, 255, 255], name
            inside = {"p": 200, "l": 0}.get(name[0], 15 if range_ is None else 255)
            assert seen[2, 0, 0] == inside, (name, range_)
    # A picture without transparency, and one of CMYK, stay as they are.
    plain = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(plain).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read_image(tmp_path / "plain.png", 3, pixel_options([0, 9], "white")), plain)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"pixel_range": [0]}, "pixel_range=.0.: give two numbers, the lower first"),
        ({"pixel_range": [4095, 0]}, "pixel_range=.4095, 0.: give two numbers"),
        ({"pixel_range": [0, float("inf")]}, "give two numbers"),
        ({"background": "wite"}, "background=wite: give a colour such as white"),
        ({"background": [255, 255]}, "give a colour such as white"),
        ({"background": [255, 255, 256]}, "give a colour such as white"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        ImageDataModule("digits", **options)


@pytest.mark.parametrize("options", [{"pixel_range": [0, 9]}, {"background": "white"}])
def test_images_in_memory_take_neither(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"these images are decoded already; leave it out"):
        _ = ImageDataModule("digits", **options).image_set


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_the_range_suggested_holds_the_values_and_is_one_that_can_be_given(one: int, other: int) -> None:
    low, high = sorted((one, other))
    suggested = pixel_options(suggested_range(low, high), None).pixel_range
    assert suggested is not None and suggested[0] <= low <= high <= suggested[1]
    ends = scaled(np.array([[low, high]], np.uint16), *suggested)[0].astype(int)
    assert high - low < 8 or ends[1] - ends[0] >= 60


def test_the_range_suggested_is_that_of_a_number_of_bits() -> None:
    found = [suggested_range(*each) for each in ((205, 3899), (0, 255), (0, 16000), (0.1, 0.9), (-1000, 3000.5))]
    assert found == [(0, 4095), (0, 255), (0, 16383), (0, 1), (-1000, 3001)]
