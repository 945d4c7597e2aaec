import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image, features
from sklearn.datasets import load_sample_image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.sources import IMAGE_SUFFIXES, decode_image, read_image
from tests.data.test_datasets import refused

RED_AND_BLUE = np.array([[[255, 0, 0]] * 8 + [[0, 0, 255]] * 8] * 16, np.uint8)
DEEP = np.array([[0, 255, 256, 511, 32_896, 65_535]], np.uint16)  # high bytes 0, 0, 1, 1, 128, 255
HIGH_BYTES = [0, 0, 1, 1, 128, 255]


def assert_close(image: np.ndarray, expected: np.ndarray, tolerance: int, name: str) -> None:
    assert image.shape == expected.shape and image.dtype == np.uint8, name
    assert np.abs(image.astype(int) - expected).max() <= tolerance, name


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "bmp", "avif"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_every_format_gives_its_pixels(suffix: str, in_channels: int, tmp_path: Path) -> None:
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert f".{suffix}" in IMAGE_SUFFIXES
    path = tmp_path / f"image.{suffix}"
    options: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
        "avif": {"quality": 100, "subsampling": "4:4:4"},
    }
    Image.fromarray(RED_AND_BLUE).save(path, **options.get(suffix, {}))
    # Rec. 601: 0.299 R + 0.587 G + 0.114 B.
    expected = RED_AND_BLUE if in_channels == 3 else np.where(RED_AND_BLUE[..., :1] > 0, 76, 29)
    image = read_image(path, in_channels)
    assert_close(image, expected, 0 if suffix in ("png", "tif", "bmp", "webp") else 12, suffix)
    np.testing.assert_array_equal(decode_image(path.read_bytes(), in_channels, suffix), image)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_16_bit_gray_is_its_high_byte(suffix: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), DEEP)
    assert read_image(tmp_path / f"deep.{suffix}", 1)[0, :, 0].tolist() == HIGH_BYTES


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_is_its_high_byte(suffix: str, channels: int, tmp_path: Path) -> None:
    pixels = np.stack([DEEP, DEEP[:, ::-1], np.zeros_like(DEEP), np.full_like(DEEP, 65_535)], -1)[..., :channels]
    bgr = pixels[..., [2, 1, 0, 3][:channels]]
    cv2.imwrite(str(tmp_path / f"deep.{suffix}"), bgr)
    image = read_image(tmp_path / f"deep.{suffix}", 3)
    assert image[0, :, 0].tolist() == HIGH_BYTES
    assert image[0, :, 1].tolist() == HIGH_BYTES[::-1]
    assert image[0, :, 2].tolist() == [0] * 6


def test_uncompressed_16_bit_tiff_is_its_high_byte(tmp_path: Path) -> None:
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
    cv2.imwrite(str(tmp_path / "deep.tif"), np.repeat(DEEP[..., None], 3, -1), options)
    assert read_image(tmp_path / "deep.tif", 3)[0, :, 1].tolist() == HIGH_BYTES


def test_gray_and_colour_of_16_bits_come_out_alike(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65_536, (32, 32), np.uint16)
    cv2.imwrite(str(tmp_path / "gray.png"), deep)
    cv2.imwrite(str(tmp_path / "colour.png"), np.repeat(deep[..., None], 3, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "gray.png", 3), read_image(tmp_path / "colour.png", 3))


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float32, "floating-point pixels"), (np.int32, "32-bit pixels"), (np.float64, "cannot be decoded")],
)
def test_pixels_without_a_range_are_refused(dtype: type, expected: str, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.tif"), DEEP.astype(dtype))
    message = refused(read_image, tmp_path / "deep.tif", 1)
    assert expected in message and str(tmp_path / "deep.tif") in message


@pytest.mark.parametrize("in_channels", [1, 3])
def test_transparency_is_dropped_and_the_colour_under_it_kept(in_channels: int, tmp_path: Path) -> None:
    alpha = np.full((16, 16, 1), 0, np.uint8)
    for suffix in ("png", "tif"):
        Image.fromarray(np.concatenate([RED_AND_BLUE, alpha], -1)).save(tmp_path / f"clear.{suffix}")
        Image.fromarray(RED_AND_BLUE).save(tmp_path / f"opaque.{suffix}")
        clear, opaque = (read_image(tmp_path / f"{name}.{suffix}", in_channels) for name in ("clear", "opaque"))
        np.testing.assert_array_equal(clear, opaque)


def test_a_palette_with_transparency_becomes_rgb(tmp_path: Path) -> None:
    palette = Image.fromarray(RED_AND_BLUE).quantize(2)
    palette.save(tmp_path / "one.png", transparency=0)
    palette.save(tmp_path / "each.png", transparency=bytes((0, 128)))
    for name in ("one.png", "each.png"):
        np.testing.assert_array_equal(read_image(tmp_path / name, 3), RED_AND_BLUE, err_msg=name)
        assert set(read_image(tmp_path / name, 1).ravel().tolist()) == {76, 29}


def test_gray_with_alpha_keeps_its_gray(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.fromarray(np.array([[7, 200]], np.uint8))] * 2)
    image.save(tmp_path / "gray.png")
    assert read_image(tmp_path / "gray.png", 1).ravel().tolist() == [7, 200]


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(suffix: str, tmp_path: Path) -> None:
    Image.fromarray(RED_AND_BLUE).convert("CMYK").save(tmp_path / f"print.{suffix}", quality=100)
    with Image.open(tmp_path / f"print.{suffix}") as saved:
        assert saved.mode == "CMYK"
    assert_close(read_image(tmp_path / f"print.{suffix}", 3), RED_AND_BLUE, 12, suffix)
    assert read_image(tmp_path / f"print.{suffix}", 1).shape == (16, 16, 1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_exif_orientation_is_applied_in_every_format_that_has_it(suffix: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned clockwise
    Image.fromarray(RED_AND_BLUE[:8]).save(tmp_path / f"turned.{suffix}", exif=exif, quality=100)
    image = read_image(tmp_path / f"turned.{suffix}", 3)
    assert image.shape == (16, 8, 3)
    assert image[2, 4, 0] > 200 > 50 > image[2, 4, 2] and image[13, 4, 2] > 200  # red above, blue below


def test_exif_orientation_turns_16_bit_gray_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(DEEP).save(tmp_path / "deep.png", exif=exif)
    assert read_image(tmp_path / "deep.png", 1)[0, :, 0].tolist() == HIGH_BYTES[::-1]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif", "avif"])
def test_of_several_frames_the_first_counts(suffix: str, tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (250, 120, 10)]
    frames[0].save(tmp_path / f"moving.{suffix}", save_all=True, append_images=frames[1:], duration=50)
    with Image.open(tmp_path / f"moving.{suffix}") as saved:
        assert saved.n_frames == 3  # type: ignore[attr-defined]
    assert read_image(tmp_path / f"moving.{suffix}", 1).min() >= 248


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", bytes.swapcase])
def test_bytes_that_are_no_image_are_named(damage: Callable[[bytes], bytes]) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "png")
    assert decode_image(buffer.getvalue(), 3, "row 7").shape == (64, 64, 3)
    assert "row 7: this image cannot be decoded" in refused(decode_image, damage(buffer.getvalue()), 3, "row 7")


# Pillow says this on its way to the error, or past it.
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "tiff", "bmp", "gif", "ppm", "avif"])
def test_whatever_byte_is_wrong_the_image_is_decoded_or_refused(file_format: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RED_AND_BLUE).save(buffer, file_format)
    refusals = 0
    for place in range(min(250, len(buffer.getvalue()))):
        content = bytearray(buffer.getvalue())
        content[place] ^= 0xFF
        try:
            decode_image(bytes(content), 3, "x")
        except UsageError as error:
            assert str(error).startswith("x: this image cannot be decoded")
            refusals += 1
    assert refusals > 3


def test_a_truncated_avif_is_named(tmp_path: Path) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(RED_AND_BLUE).save(tmp_path / "cut.avif")
    content = (tmp_path / "cut.avif").read_bytes()
    (tmp_path / "cut.avif").write_bytes(content[: len(content) * 3 // 4])
    assert "cut.avif: this image cannot be decoded" in refused(read_image, tmp_path / "cut.avif", 3)


# --- JPEG, of which the sound ones take another way than Pillow's ---


def photograph(size: tuple[int, int] = (101, 67)) -> Image.Image:
    return Image.fromarray(load_sample_image("china.jpg")).resize(size)


def pillows(content: bytes, in_channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as file:
        array = np.asarray(file.convert("RGB" if in_channels == 3 else "L"))
    return array.reshape(*array.shape[:2], in_channels)


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 20},
        {"quality": 95, "subsampling": "4:4:4"},
        {"subsampling": "4:2:2"},
        {"progressive": True},
        {"optimize": True, "restart_marker_rows": 1},
    ],
    ids=str,
)
def test_a_jpeg_has_the_pixels_that_pillow_gives(options: dict[str, Any], mode: str, in_channels: int) -> None:
    buffer = io.BytesIO()
    photograph().convert(mode).save(buffer, "jpeg", **options)
    expected = pillows(buffer.getvalue(), in_channels)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), in_channels, "x"), expected)


def test_a_jpeg_of_rgb_that_is_no_ycbcr_keeps_its_colours() -> None:
    buffer = io.BytesIO()
    photograph().save(buffer, "jpeg", keep_rgb=True, quality=95)
    np.testing.assert_array_equal(decode_image(buffer.getvalue(), 3, "x"), pillows(buffer.getvalue(), 3))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_a_damaged_jpeg_is_refused_or_decoded_as_pillow_does() -> None:
    buffer = io.BytesIO()
    photograph().save(buffer, "jpeg", quality=90)
    whole = buffer.getvalue()
    cut = [whole[:length] for length in range(700, len(whole), 97)]
    draw = np.random.default_rng(0)
    changed = []
    for place in draw.integers(2, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= int(draw.integers(1, 256))
        changed.append(bytes(damaged))
    verdicts = set()
    for content in cut + changed:
        expected: np.ndarray | None = None
        with contextlib.suppress(Exception):
            expected = pillows(content, 3)
        if expected is None:
            assert "x: this image cannot be decoded" in refused(decode_image, content, 3, "x")
        else:
            np.testing.assert_array_equal(decode_image(content, 3, "x"), expected)
        verdicts.add(expected is None)
    assert verdicts == {True, False}
