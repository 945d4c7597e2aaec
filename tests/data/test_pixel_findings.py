"""What check-data and the quick look of `fit` say of pixels: hardly used ranges, transparency, further bands."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from lit_cnn.core.errors import UsageError
from lit_cnn.data.audit import Level, check_data
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.findings import Finding
from lit_cnn.data.sources import FileImages
from lit_cnn.training.before_fit import check_before_fit

Write = Callable[[Path, np.ndarray], object]


def of_12_bits(path: Path, shares: np.ndarray) -> None:
    cv2.imwrite(str(path), (shares * 4000).astype(np.uint16))


def colour_of_12_bits(path: Path, shares: np.ndarray) -> None:
    cv2.imwrite(str(path), np.dstack([(shares * 4000).astype(np.uint16)] * 3))


def of_16_bits(path: Path, shares: np.ndarray) -> None:
    cv2.imwrite(str(path), (shares * 65535).astype(np.uint16))


def floats(path: Path, shares: np.ndarray) -> None:
    tifffile.imwrite(path.with_suffix(".tif"), shares.astype(np.float32))


def strokes(path: Path, shares: np.ndarray) -> None:
    Image.fromarray(np.dstack([np.zeros((*shares.shape, 3)), shares * 255]).astype(np.uint8)).save(path)


def photographs(path: Path, shares: np.ndarray) -> None:
    Image.fromarray(np.dstack([shares * 255] * 4).astype(np.uint8)).save(path)


def infrared(path: Path, shares: np.ndarray) -> None:
    pixels = np.dstack([shares * 255] * 4).astype(np.uint8)
    tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="rgb", extrasamples=[0])


def folder(root: Path, write: Write, per_class: int = 10) -> Path:
    for label, name in enumerate(("across", "down")):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            write(
                root / name / f"{number:02d}.png", np.random.default_rng([label, number]).uniform(0.02, 0.98, (16, 16))
            )
    return root


KINDS = ("unused_range", "no_use_of_range", "only_transparency", "extra_band", "flat", "unsupported_pixels")


def found(root: Path, level: Level, **options: Any) -> dict[str, Finding]:
    findings = check_data(ImageDataModule("image_folder", root, **options), level).findings
    return {finding.kind: finding for finding in findings if finding.kind in KINDS}


@pytest.mark.parametrize("level", ["quick", "full"])
@pytest.mark.parametrize(
    ("write", "kinds", "message"),
    [
        (of_12_bits, {"unused_range"}, r"and 39\d\d.*leaves 1\d of 256 shades: give `pixel_range=\[0,4095\]`"),
        (colour_of_12_bits, {"unused_range"}, r"39\d\d.*`pixel_range=\[0,4095\]`"),
        (of_16_bits, set(), ""),
        (floats, {"unsupported_pixels"}, r"0.02\d* and 0.9.*give `pixel_range=\[0,1\]`"),
        (strokes, {"only_transparency"}, "differs only in transparency, which is dropped.*give `background=white`"),
        (photographs, set(), ""),
        (infrared, {"extra_band"}, "has a band besides its colours"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_what_pixels_do_not_say_is_named_with_the_option(
    level: Level, write: Write, kinds: set[str], message: str, tmp_path: Path
) -> None:
    root = folder(tmp_path / "root", write)
    findings = found(root, level)
    assert findings.keys() == kinds
    assert all(
        finding.severity == ("error" if kind == "unsupported_pixels" else "warning")
        for kind, finding in findings.items()
    )
    for finding in findings.values():
        assert re.search(message, finding.message), finding.message
    assert found(root, level) == findings  # as remembered
    assert found(root, "quick").keys() == kinds


@pytest.mark.parametrize("level", ["quick", "full"])
def test_with_the_option_nothing_is_left_to_say(level: Level, tmp_path: Path) -> None:
    for name, write, options in (
        ("deep", of_12_bits, {"pixel_range": [0, 4095]}),
        ("float", floats, {"pixel_range": [0, 1]}),
        ("stroke", strokes, {"background": "white"}),
    ):
        root = folder(tmp_path / name, write)
        assert found(root, level).keys() & {"unused_range", "unsupported_pixels", "only_transparency"}
        assert found(root, level, **options) == {}
    # Another range is said to be wrong, as is a background that no stroke stands out from, and an option for nothing.
    assert "unused_range" in found(tmp_path / "deep", level, pixel_range=[0, 16383])
    assert (
        "give `background=white`" in found(tmp_path / "stroke", level, background="black")["only_transparency"].message
    )
    assert "no_use_of_range" in found(tmp_path / "stroke", level, pixel_range=[0, 9], background="white")


def test_a_quick_look_decodes_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    for name, write, most in (("deep", of_12_bits, 12), ("good", of_16_bits, 1), ("photo", photographs, 12)):
        data = ImageDataModule("image_folder", folder(tmp_path / name, write, 40))
        check_data(data, "quick")  # headers are remembered now
        real = FileImages.open

        def counted(images: FileImages, index: int, real: Any = real) -> Any:
            opened.append(index)
            return real(images, index)

        monkeypatch.setattr(FileImages, "open", counted)
        opened.clear()
        check_data(data, "quick")
        monkeypatch.undo()
        assert 0 < len(opened) <= most


def test_fit_says_it_before_the_first_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_before_fit(ImageDataModule("image_folder", folder(tmp_path / "deep", of_12_bits)))
    assert "lit-cnn: warning: unused_range, " in (err := capsys.readouterr().err) and "give pixel_range=[0,4095]" in err
    with pytest.raises(UsageError, match=r"no range to scale from.*pixel_range=.0,1."):
        check_before_fit(ImageDataModule("image_folder", folder(tmp_path / "float", floats)))
    check_before_fit(ImageDataModule("image_folder", tmp_path / "float", pixel_range=[0, 1]))
    assert "range" not in capsys.readouterr().err
