"""Folders as people have them: split folders in other spellings, one folder too deep or too flat, files of all kinds.

Each is to be read right, with a word about what is passed over, or refused in one line that names the way out.
"""

import io
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from lit_cnn.data.file_kinds import HAS_HEIF
from tests.bad_files import encoded


def picture(number: int) -> Image.Image:
    """A small picture in colour; no two are alike."""
    pixels = np.random.default_rng(number).integers(0, 200, (20, 24, 3), np.uint8)
    pixels[:, :, number % 3] += 50
    return Image.fromarray(pixels)


def images(root: Path, *names: str, count: int = 6, start: int = 0, suffix: str = ".png") -> Path:
    """Writes `count` pictures into each folder; a name that has a suffix is one picture."""
    number = start + sum(1 for _ in root.rglob("*"))
    for name in names:
        files = [root / name] if Path(name).suffix else [root / name / f"{place}{suffix}" for place in range(count)]
        for file in files:
            number += 1
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(number), {".jpg": "jpeg"}.get(file.suffix, "png")))
    return root


@dataclass(frozen=True)
class Case:
    """A folder, and what is to become of it.

    Attributes:
        make: Writes it.
        classes: What it is read as, in order; empty if it is refused.
        splits: Images in each split that is prescribed, or in `all`.
        said: What fit says on its error output, as texts; where the folder is read, in warnings.
        noted: Kinds of findings in check-data besides.
        predicted: How many images predict classifies.
        options: More options of fit and check-data.
    """

    make: Callable[[Path], object]
    predicted: int
    classes: tuple[str, ...] = ()
    splits: tuple[tuple[str, int], ...] = ()
    said: tuple[str, ...] = ()
    noted: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def _of_splits(*names: str) -> Callable[[Path], object]:
    return lambda root: images(root, *(f"{name}/{label}" for name in names for label in ("cat", "dog")))


def _read_splits(*names: str) -> Case:
    splits = tuple(zip(("train", "val", "test"), (12,) * len(names), strict=False))
    if len(names) == 2:
        splits = (("train", 12), ("val" if "v" in names[1].lower() else "test", 12))
    return Case(_of_splits(*names), 12 * len(names), ("cat", "dog"), splits)


def _suffixes(root: Path) -> None:
    images(root, "cat", "dog")
    kinds = {"jfif": "jpeg", "jpe": "jpeg", "jpg_large": "jpeg", "JPG~": "jpeg", "jp2": "jpeg2000", "tga": "tga"}
    for number, (suffix, kind) in enumerate({**kinds, "pnm": "ppm", "0001": "webp", "heic": "jpeg"}.items()):
        (root / "cat" / f"more.{suffix}").write_bytes(encoded(picture(500 + number), kind))
    (root / "cat" / "IMG_0001").write_bytes(encoded(picture(600), "jpeg"))


def _unread(root: Path) -> None:
    images(root, "cat", "dog")
    (root / "cat" / "a.jxl").write_bytes(b"\xff\x0a" + bytes(90))
    (root / "cat" / "b.psd").write_bytes(b"8BPS\0\1" + bytes(90))
    (root / "dog" / "c.nef").write_bytes(encoded(picture(700), "tiff"))
    (root / "dog" / "d").write_bytes(b"\0\1\2" + bytes(90))
    (root / "dog" / "README").write_text("about these dogs")
    (root / "dog" / "e.xml").write_text("<box/>")


def _heic(root: Path) -> None:
    images(root, "cat", "dog")
    (root / "cat" / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(600))


def _other_software(root: Path) -> None:
    images(root, "cat", "dog", "__MACOSX/cat", "@eaDir")
    images(root, "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "cat/.thumbnails/1.jpg", "dog/._0.png", ".trash/x.png")
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (root / "dog" / name).write_bytes(b"\0\1")


def _shard(file: Path, samples: Iterable[tuple[str, bytes]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in samples:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _samples(start: int, count: int = 12) -> list[tuple[str, bytes]]:
    return [
        pair
        for number in range(start, start + count)
        for pair in (
            (f"{number:04}.png", encoded(picture(number), "png")),
            (f"{number:04}.cls", b"cat" if number % 2 else b"dog"),
        )
    ]


def _shards(*names: str) -> Callable[[Path], object]:
    def make(root: Path) -> None:
        for place, name in enumerate(names):
            _shard(root / name, _samples(100 * place))

    return make


def _apart(root: Path) -> None:
    _shard(root / "a.tar", sorted(_samples(0), key=lambda pair: pair[0].endswith("cls")))


def _labels_first(root: Path) -> None:
    _shard(root / "a.tar", sorted(_samples(0), key=lambda pair: pair[0].endswith("png")))


def _shard_of_macos(root: Path) -> None:
    _shard(
        root / "a.tar", [each for name, data in _samples(0) for each in ((f"t/._{name}", b"\0\5"), (f"t/{name}", data))]
    )


_SHARDS = ("--data.dataset=webdataset",)
_PETS = ("cat", "dog")
_TWELVE = (("all", 12),)

CASES: dict[str, Case] = {
    # Splits in other spellings.
    **{
        " ".join(names): _read_splits(*names)
        for names in (
            ("train", "val", "test"),
            ("training_set", "test_set"),
            ("train2017", "val2017"),
            ("data_train", "data_test"),
            ("Train_images", "Validation_images", "Test_images"),
            ("trn", "dev", "tst"),
            ("TrainSet", "ValSet"),
        )
    },
    "seg_train seg_test": Case(
        _of_splits("seg_train", "seg_test"), 24, said=("rename what is a split to train/, test/", "class_names")
    ),
    "train_final test_old": Case(_of_splits("train_final", "test_old"), 24, said=("train_final/ sounds like train",)),
    "eval": Case(_of_splits("eval", "learn"), 24, said=("eval/ sounds like val or test",)),
    "trainval": Case(_of_splits("trainval", "extra"), 24, said=("trainval/ sounds like train and val or test",)),
    "train and eval": Case(
        _of_splits("train", "eval"), 24, _PETS, (("train", 12),), said=("other_folder, 1 time: eval",)
    ),
    "fold1 fold2": Case(_of_splits("one", "two"), 24, ("one", "two"), (("all", 24),), said=("hold the same folders",)),
    "splits in classes": Case(
        lambda root: images(root, "cat/train", "cat/test", "dog/train", "dog/test"), 24, said=("put the split above",)
    ),
    "two of train": Case(_of_splits("train", "training_set"), 24, said=("both say train",)),
    # Classes that sound like splits.
    "train plane car": Case(
        lambda root: images(root, "car", "plane", "train"),
        18,
        ("car", "plane", "train"),
        (("all", 18),),
        said=("train is read as a class",),
    ),
    "train plane car, named": Case(
        lambda root: images(root, "car", "plane", "train"),
        18,
        ("train", "plane", "car"),
        (("all", 18),),
        options=("--data.class_names=[train, plane, car]",),
    ),
    "test_tube training_shoe beaker": Case(
        lambda root: images(root, "beaker", "test_tube", "training_shoe"),
        18,
        ("beaker", "test_tube", "training_shoe"),
        (("all", 18),),
        noted=("class_like_split",),
    ),
    "bullet_train/a car/b": Case(
        lambda root: images(root, "bullet_train/tgv", "bullet_train/ice", "car/coupe", "car/van"),
        24,
        ("bullet_train", "car"),
        (("all", 24),),
        said=("bullet_train is read as a class",),
    ),
    "seg_train seg_pred": Case(
        lambda root: images(root, "seg_train/cat", "seg_train/dog", "seg_pred"),
        18,
        said=("seg_train/ sounds like train",),
    ),
    "evaluation invoice": Case(
        lambda root: images(root, "evaluation", "invoice"),
        12,
        ("evaluation", "invoice"),
        _TWELVE,
        said=("evaluation is read as a class",),
    ),
    "valid invalid": Case(lambda root: images(root, "valid", "invalid"), 12, said=("has valid/ and no train/",)),
    "valid invalid, named": Case(
        lambda root: images(root, "valid", "invalid"),
        12,
        ("valid", "invalid"),
        _TWELVE,
        options=("--data.class_names=[valid, invalid]",),
    ),
    # Too flat, too deep.
    "flat": Case(
        lambda root: images(root, "."), 6, said=("holds 6 images in no class folder", "lit-cnn predict takes")
    ),
    "flat train": Case(
        lambda root: images(root, *(f"train/{name}.{place}.jpg" for name in _PETS for place in range(4))),
        8,
        said=("train holds 8 images in no class folder, such as cat.0.jpg",),
    ),
    "flat test": Case(
        lambda root: images(root, "train/cat", "train/dog", "test"), 18, said=("test holds 6 images", "--data.root")
    ),
    "of Windows": Case(
        lambda root: images(root, *(f"{name}\\{place}.png" for name in _PETS for place in range(4))),
        8,
        said=("backslash", "unzip"),
    ),
    "too deep": Case(
        lambda root: images(root, "photos/cat", "photos/dog"), 12, said=("/photos, if those are the classes",)
    ),
    "too deep, splits": Case(_of_splits("data/set/train", "data/set/test"), 24, said=("/data/set, if those",)),
    "too deep in train": Case(
        lambda root: images(root, "train/train/cat", "train/train/dog"), 12, said=("move what is in",)
    ),
    "an archive": Case(lambda root: [images(root, "cat.zip")], 0, said=("unpack the archive first",)),
    # Files.
    "suffixes": Case(_suffixes, 22, _PETS, (("all", 22),)),
    "unread": Case(_unread, 12, _PETS, _TWELVE, ("unread_file, 4 times: cat/a.jxl passed over",), ("other_file",)),
    "heic": Case(_heic, 12, _PETS, _TWELVE, ("1 HEIC", "lit-cnn[heif]")),
    "other software": Case(_other_software, 12, _PETS, _TWELVE, noted=("system_file",)),
    "loose": Case(
        lambda root: images(root, "cat", "dog", "x.png"), 13, _PETS, _TWELVE, ("loose_image, 1 time: x.png",)
    ),
    # Shards.
    "shards": Case(
        _shards("imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar", "imagenet1k-validation-00.tar"),
        0,
        _PETS,
        (("train", 24), ("val", 12)),
        options=_SHARDS,
    ),
    "shards of eval": Case(
        _shards("a-train-0.tar", "a-eval-0.tar"), 0, said=("a-eval-0.tar may be val or test",), options=_SHARDS
    ),
    "labels after": Case(_apart, 0, said=("follow each other",), options=_SHARDS),
    "labels before": Case(_labels_first, 0, said=("follow each other",), options=_SHARDS),
    "shard of macOS": Case(_shard_of_macos, 0, _PETS, _TWELVE, noted=("system_file",), options=_SHARDS),
}
if HAS_HEIF:
    del CASES["heic"]
