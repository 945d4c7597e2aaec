"""Sets of images that can be made here without a network but Debian's packages: a pool to learn from, and a test.

    FOLDER/pool/CLASS/…     what a tool is given
    FOLDER/test/00000.png   what it predicts, without a class in its name
    FOLDER/test.csv         file, class

Squares of photographs: those of the pool and those of the test do not overlap.
"""

import csv
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

Images = Mapping[str, list[np.ndarray]]
"""Class -> images `(H, W, 3)` or `(H, W)` uint8."""


@dataclass(frozen=True)
class ImageSet:
    """How a set is made.

    Attributes:
        make: Returns the pool and the test; called in an empty folder.
        suffix: Of its files.
        mirrored: Whether a mirrored image is of the same class, as who knows the images would say.
    """

    make: Callable[[], tuple[Images, Images]]
    suffix: str = ".png"
    mirrored: bool = True


def write_set(name: str, folder: Path) -> Path:
    """Writes a set unless it is there; returns its folder."""
    if folder.is_dir():
        return folder
    beside = folder.with_name(f"{folder.name}.{os.getpid()}")
    beside.mkdir(parents=True)
    before = Path.cwd()
    os.chdir(beside)
    try:
        pool, test = SETS[name].make()
        os.chdir(beside)
        _write(pool, test, SETS[name].suffix)
    finally:
        os.chdir(before)
    beside.rename(folder)
    return folder


def targets_of(folder: Path) -> dict[str, str]:
    """Returns file name -> class of the test images of a set, in the order of their names."""
    with (folder / "test.csv").open(newline="", encoding="utf-8") as file:
        return {row["file"]: row["class"] for row in csv.DictReader(file)}


def num_images(folder: Path) -> dict[str, int]:
    """Returns how many images and classes a set has."""
    return {
        "pool": sum(1 for _ in folder.glob("pool/*/*")),
        "test": len(targets_of(folder)),
        "classes": sum(1 for _ in folder.glob("pool/*")),
    }


def _write(pool: Images, test: Images, suffix: str) -> None:
    for name, images in pool.items():
        Path("pool", name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(Path("pool", name, f"{number:05}{suffix}"))
    all_test = [(name, image) for name, images in test.items() for image in images]
    order = np.random.default_rng(0).permutation(len(all_test))
    Path("test").mkdir()
    with Path("test.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "class"])
        for number, place in enumerate(order):
            name, image = all_test[place]
            Image.fromarray(image).save(Path("test", f"{number:05}{suffix}"))
            rows.writerow([f"{number:05}{suffix}", name])


def _digits() -> tuple[Images, Images]:
    """1,347 and 450 images of 8 px, of ten classes."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    pixels = np.rint(found.images * 255 / 16).astype(np.uint8)
    pool, test = train_test_split(np.arange(len(pixels)), test_size=450, stratify=found.target, random_state=0)
    return _by_class(pixels[pool], found.target[pool]), _by_class(pixels[test], found.target[test])


def _fashion_mnist(num_pool: int = 5_000, num_test: int = 2_000) -> tuple[Images, Images]:
    """5,000 of the 60,000 training images and 2,000 of the 10,000 test images, of 28 px, of ten classes."""
    from lit_cnn.data.datamodule import ImageDataModule

    data = ImageDataModule("fashion_mnist")
    splits, labels = data.splits, data.image_set.labels
    drawn = np.random.default_rng(0)
    of_train = np.concatenate([splits.train, splits.val])
    pool = _of_each(of_train, labels, num_pool // 10, drawn)
    test = _of_each(splits.test, labels, num_test // 10, drawn)
    pixels = data.image_set.images

    def images(some: np.ndarray) -> Images:
        return _by_class([np.squeeze(pixels[int(one)]) for one in some], labels[some])

    return images(pool), images(test)


def _of_each(places: np.ndarray, labels: np.ndarray, count: int, drawn: np.random.Generator) -> np.ndarray:
    classes = np.unique(labels)
    return np.concatenate([drawn.permutation(np.sort(places[labels[places] == one]))[:count] for one in classes])


def _by_class(pixels: np.ndarray | list[np.ndarray], labels: np.ndarray) -> Images:
    found: dict[str, list[np.ndarray]] = {}
    for image, label in zip(pixels, labels, strict=True):
        found.setdefault(f"class_{label}", []).append(image)
    return dict(sorted(found.items()))


_BUNDLED = (
    "astronaut brick camera cat coffee coins grass gravel hubble_deep_field immunohistochemistry moon retina rocket"
)


def _squares(side: int = 64, num_pool: int = 10, num_test: int = 14) -> tuple[Images, Images]:
    """Of which of sixteen photographs a square of 64 px is: those that scikit-image and scikit-learn bring along."""
    drawn = np.random.default_rng(0)
    pool, test = dict[str, list[np.ndarray]](), dict[str, list[np.ndarray]]()
    for name, pixels in sorted(_bundled_photographs().items()):
        pool[name], test[name] = _cells(pixels, side, num_pool, num_test, drawn)
    return pool, test


def _bundled_photographs() -> dict[str, np.ndarray]:
    import skimage.data
    from sklearn.datasets import load_sample_images

    found = {name: getattr(skimage.data, name)() for name in _BUNDLED.split()}
    found["motorcycle"] = skimage.data.stereo_motorcycle()[0]
    sample = load_sample_images()
    found |= {Path(name).stem: pixels for name, pixels in zip(sample.filenames, sample.images, strict=True)}
    return {name: pixels if pixels.ndim == 3 else np.stack([pixels] * 3, -1) for name, pixels in found.items()}


def _cells(
    pixels: np.ndarray, side: int, num_pool: int, num_test: int, drawn: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns squares of a photograph that do not overlap, for the pool and for the test."""
    rows, columns = pixels.shape[0] // side, pixels.shape[1] // side
    places = drawn.permutation(rows * columns)[: num_pool + num_test]
    assert len(places) == num_pool + num_test, pixels.shape
    corners = [(side * (place // columns), side * (place % columns)) for place in places]
    found = [np.ascontiguousarray(pixels[y : y + side, x : x + side]) for y, x in corners]
    return found[:num_pool], found[num_pool:]


_PACKAGES = ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "plasma-workspace-wallpapers", "ukui-wallpapers")
# Beginnings of names: of Debian's wallpapers, or of what scikit-image and scikit-learn bring along.
_SHOWN = {
    "animal": ("Kleiber", "Dragonfly", "the-mouse", "goldfish", "cat"),
    "landscape": ("picosdeeuropa", "sunset", "EveningGlow", "BytheWater", "Bridge", "china"),
    "plant": ("FallenLeaf", "Autumn", "seeding", "greentock", "flower"),
    "thing": ("ColorfulCups", "Wine", "OneStandsOut", "coffee", "motorcycle", "rocket"),
}


def _photographs(num_pool: int = 38, num_test: int = 76, most: int = 480) -> tuple[Images, Images]:
    """What the photograph shows of which a square is a part (animal, landscape, plant, thing): 152 and 304 squares."""
    drawn = np.random.default_rng(0)
    photographs = dict(sorted({**_wallpapers(), **_bundled_photographs()}.items()))
    pool, test = dict[str, list[np.ndarray]](), dict[str, list[np.ndarray]]()
    for kind, names in _SHOWN.items():
        pool[kind], test[kind] = [], []
        # One more of the first photographs where the numbers do not divide.
        for place, name in enumerate(names):
            pixels = next(each for of, each in photographs.items() if of.startswith(name))
            share = [(count + place) // len(names) for count in (num_pool, num_test)]
            of_pool, of_test = _cells(pixels, _side(pixels.shape, sum(share)), share[0], share[1], drawn)
            pool[kind] += [_at_most(each, most) for each in of_pool]
            test[kind] += [_at_most(each, most) for each in of_test]
    return pool, test


def _side(shape: tuple[int, ...], count: int) -> int:
    """Returns the largest side, in pixels, of so many squares that do not overlap."""
    height, width = shape[:2]
    return next(side for side in range(height, 0, -1) if (height // side) * (width // side) >= count)


def _at_most(pixels: np.ndarray, side: int) -> np.ndarray:
    if len(pixels) <= side:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS))


def _wallpapers() -> dict[str, np.ndarray]:
    """Returns the photographs of Debian's packages, which are unpacked and not installed."""
    subprocess.run(["apt-get", "-qq", "download", *_PACKAGES], check=True)
    for package in Path().glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, "unpacked"], check=True)
        package.unlink()
    files = [(file.stem, file) for file in Path("unpacked/usr/share/backgrounds").glob("*.*")]
    for folder in Path("unpacked/usr/share/wallpapers").glob("*/contents/images"):
        files.append((folder.parts[-3], max(folder.iterdir(), key=lambda file: file.stat().st_size)))
    wanted = tuple(name for names in _SHOWN.values() for name in names)
    found = {name: np.asarray(Image.open(file).convert("RGB")) for name, file in files if name.startswith(wanted)}
    shutil.rmtree("unpacked")
    return found


SETS = {
    "digits": ImageSet(_digits, mirrored=False),
    "fashion_mnist": ImageSet(_fashion_mnist),
    "squares": ImageSet(_squares),
    "photographs": ImageSet(_photographs, suffix=".jpg"),
}
