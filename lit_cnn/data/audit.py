"""What is wrong with a set of images: files that cannot be trained on, copies, conflicting labels, missing classes."""

import html
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lit_cnn.core.addresses import is_address
from lit_cnn.core.errors import UsageError, in_python, spelt
from lit_cnn.core.file_hashes import NO_BYTES
from lit_cnn.core.intervals import wilson_interval
from lit_cnn.core.words import counted
from lit_cnn.data.class_table import count_classes
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.findings import ABSENT, Severity
from lit_cnn.data.inspection import THUMBNAIL, Inspection, inspect_images
from lit_cnn.data.pixel_findings import of_pixels, range_to_give
from lit_cnn.data.sources import Finding, ImageSet, class_findings
from lit_cnn.data.sources.manifest import MANIFEST_SUFFIXES
from lit_cnn.data.splits import SPLIT_NAMES

Level = Literal["quick", "full"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_LEAST_SIDE = 8  # pixels
_LONGEST_SHAPE = 10  # times as long as wide
_IMBALANCE = 10  # times as many
_FEW_TEST_IMAGES = 5  # of a class, from which a result says something
_SHOWN = 8  # findings in a printed report
# What still counts as the same picture: shrunk, enlarged, saved again as JPEG, made gray, of a little other contrast.
# Unrelated photographs differ in 22 of the 64 bits and more.
_PHASH_BITS = 4
_LEAST_CORRELATION = 0.995

_FAULTS: dict[str, tuple[Severity, str]] = {
    "unreadable": ("error", "cannot be read; give yourself the right to, or take it away"),
    "empty_file": ("error", "holds no bytes; put the image back, or take it away"),
    "not_an_image": ("error", "is no image; take it away"),
    "unread_format": ("error", "is of a format that is not read"),
    "pointer": ("error", "does not hold the image, only says where it is kept"),
    "truncated": ("error", "ends too early; copy it again, or take it away"),
    "damaged": ("error", "cannot be decoded; copy it again, or take it away"),
    "unsupported_pixels": ("error", "has pixels that are not read"),
    "too_many_pixels": ("error", "has more pixels than `max_pixels`; shrink it, or raise that"),
}
_ODDITIES: dict[str, tuple[Severity, str]] = {
    "tiny": ("warning", f"is less than {_LEAST_SIDE} px wide or high: there is nothing to see; take it away"),
    "flat": ("warning", "is of one colour throughout; take it away"),
    "animated": ("note", "is an animation; its first frame counts"),
    "several_pages": ("note", "has several pages; the first counts"),
    "long_shape": (
        "note",
        f"is more than {_LONGEST_SHAPE} times as long as wide; the square that is cut out shows little of it",
    ),
    "other_suffix": ("note", "is of another format than its name says"),
}
_WITH_REASON = ("unreadable", "not_an_image", "unread_format", "pointer", "unsupported_pixels", "truncated", "damaged")
_FORMATS = {
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi"), ("JPEG", "MPO")),
    **dict.fromkeys((".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"), ("JPEG2000",)),
    ".png": ("PNG",),
    ".apng": ("PNG",),
    ".tga": ("TGA",),
    ".webp": ("WEBP",),
    ".avif": ("AVIF",),
    ".tif": ("TIFF",),
    ".tiff": ("TIFF",),
    ".bmp": ("BMP",),
    ".gif": ("GIF",),
    **dict.fromkeys((".pgm", ".ppm", ".pbm", ".pnm"), ("PPM",)),
}


@dataclass(frozen=True)
class Report:
    """What was found in a set of images; shows itself in a notebook, and as text when printed.

    Attributes:
        level: `quick` (headers, copies by their bytes, classes) or `full` (every image decoded, near copies too).
        num_images: Images by split; `all` for those not in a split yet.
        num_by_class: The same of each class.
        findings: What was found, errors first.
        seconds: How long it took.
        image_set: The images.
    """

    level: Level
    num_images: Mapping[str, int]
    num_by_class: Mapping[str, Mapping[str, int]]
    findings: Sequence[Finding]
    seconds: float
    image_set: ImageSet = field(repr=False, compare=False)

    def of(self, *severities: Severity) -> list[Finding]:
        """Returns the findings of these severities."""
        return [finding for finding in self.findings if finding.severity in severities]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {
            "level": self.level,
            "num_images": dict(self.num_images),
            "num_by_class": {name: dict(counts) for name, counts in self.num_by_class.items()},
            "findings": [finding.to_dict() for finding in self.findings],
            "seconds": round(self.seconds, 3),
        }

    @property
    def summary(self) -> str:
        """One sentence: how much was found, and what to do."""
        images = ", ".join(f"{split} {count:,}" for split, count in self.num_images.items())
        about = f"({images}; {self.level} check, {self.seconds:.1f} s)"
        found = {severity: len(self.of(severity)) for severity in SEVERITIES}
        if not any(found.values()):
            return f"Nothing is wrong with the images {about}."
        if found["error"]:
            what_to_do = "mend the errors before training, a run stops at them"
        elif found["warning"]:
            what_to_do = "look at the warnings before training, they make results wrong or worse"
        else:
            what_to_do = "training can start"
        return f"{', '.join(counted(count, severity) for severity, count in found.items())} {about}: {what_to_do}."

    def __str__(self) -> str:
        lines = [self.summary]
        for finding in self.findings[:_SHOWN]:
            first = " = ".join(finding.cases[0][:2])
            count = f" ({len(finding.cases):,})" if len(finding.cases) > 1 else ""
            lines.append(f"{finding.severity}: {finding.kind}{count}: {first}: {spelt(finding.message, in_python)}")
        if len(self.findings) > _SHOWN:
            lines.append(f"and {len(self.findings) - _SHOWN} more kinds, see `findings`")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [("", "what", "cases", "the first", "what it means")]
        for finding in self.findings:
            first = "\n".join(" = ".join(case[:2]) for case in finding.cases[:3])
            message = spelt(finding.message, in_python)
            rows.append((finding.severity, finding.kind, f"{len(finding.cases):,}", first, message))
        cells = ("".join(f"<td>{html.escape(cell).replace(chr(10), '<br>')}</td>" for cell in row) for row in rows)
        table = "".join(f"<tr>{row}</tr>" for row in cells) if self.findings else ""
        return f"<p>{html.escape(self.summary)}</p><table>{table}</table>"


def check_data(data: ImageDataModule | str | Path, level: Level = "full") -> Report:
    """Looks through images before training: damaged files, copies, conflicting labels, classes out of line.

    Example:
        >>> import lit_cnn
        >>> lit_cnn.check_data(lit_cnn.ImageDataModule("digits"), level="quick").of("error", "warning")
        []

    Args:
        data: The images, or the path or address of a folder of them or of a manifest.
        level: `quick` reads headers, `full` decodes every image; what was seen once is remembered for the next time.

    Raises:
        UsageError: If there are no such images. What is wrong with those there are is in the report.
    """
    data = data if isinstance(data, ImageDataModule) else _data_at(data)
    image_set = data.load()
    try:
        drawn = data.split(image_set)
    except UsageError as error:
        at = f"`{error.option}={error.value}`: " if error.value is not None else ""
        message = f"no split can be drawn: {at}{'; '.join(filter(None, (error.reason, error.remedy)))}"
        finding = Finding("no_split", "error", message, ((image_set.name,),))
        report = audit(image_set, image_set.splits, level)
        return replace(report, findings=[finding, *report.findings])
    return audit(image_set, {split: drawn[split] for split in SPLIT_NAMES}, level)


def _data_at(place: str | Path) -> ImageDataModule:
    if is_address(place):
        is_manifest = str(place).lower().endswith(MANIFEST_SUFFIXES)
        return ImageDataModule("manifest" if is_manifest else "image_folder", root=place)
    path = Path(place).expanduser()
    if path.is_dir():
        return ImageDataModule("image_folder", root=path)
    if path.suffix.lower() in MANIFEST_SUFFIXES:
        return ImageDataModule("manifest", root=path)
    raise UsageError("data", path, "no such folder, and no manifest", "give a folder, or a .csv, .tsv or .parquet file")


def audit(image_set: ImageSet, splits: Mapping[str, np.ndarray], level: Level) -> Report:
    """Looks through a set of images.

    Args:
        image_set: The images, perhaps with what `check_image_set` would refuse.
        splits: `train`, `val` and `test`, as far as they are known: `(n,)` indices each. Images in none of them, as
            `limit_train` leaves some, are looked through too; copies in one split and in none are not across.
        level: `quick` reads headers, `full` decodes every image; what was seen once is remembered for the next time.
    """
    started = time.monotonic()
    seen = inspect_images(image_set, level == "full")
    split_of = np.full(len(image_set.labels), "", "U5")
    for split, members in splits.items():
        split_of[members] = split
    # The worst first, within each severity too.
    findings = [*class_findings(image_set), *_of_copies(image_set, split_of)]
    if level == "full":
        findings += _of_near_copies(image_set, split_of, seen)
    findings += [
        *_of_single_images(image_set, seen),
        *of_pixels(image_set, splits, seen),
        *image_set.findings,
        *_of_classes(image_set, splits),
    ]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    parts = splits or {"all": np.arange(len(image_set.labels))}
    counts = {split: len(members) for split, members in parts.items()}
    by_class = count_classes(image_set, parts)
    return Report(level, counts, by_class, findings, time.monotonic() - started, image_set)


def _of_single_images(image_set: ImageSet, seen: Sequence[Inspection]) -> Iterator[Finding]:
    found = defaultdict(list)
    # A missing image is reported once, by the source.
    absent = {
        path for finding in image_set.findings if finding.kind in ABSENT for case in finding.cases for path in case
    }
    for index, one in enumerate(seen):
        if image_set.paths[index] in absent:
            continue
        for kind in (one.fault,) if one.fault else _oddities(image_set.paths[index], one):
            found[kind].append(index)
    for kind, (severity, message) in {**_FAULTS, **_ODDITIES}.items():
        if indices := found[kind]:
            reason = f" ({seen[indices[0]].reason})" if kind in _WITH_REASON else ""
            if kind == "unsupported_pixels":
                reason += range_to_give(image_set, indices, seen)
            yield Finding(kind, severity, message + reason, tuple((image_set.paths[index],) for index in indices))


def _oddities(path: str, one: Inspection) -> Iterator[str]:
    """Yields the kinds of what is odd about an image that can be trained on."""
    shorter, longer = sorted((one.width, one.height))
    if 0 < shorter < _LEAST_SIDE:
        yield "tiny"
    if one.is_flat and not one.is_plain:
        yield "flat"
    if one.num_frames > 1 and one.file_format in ("GIF", "PNG", "WEBP", "AVIF"):
        yield "animated"
    if one.num_frames > 1 and one.file_format == "TIFF":
        yield "several_pages"
    if longer > _LONGEST_SHAPE * shorter:
        yield "long_shape"
    if one.file_format and one.file_format not in _FORMATS.get(path[path.rfind(".") :].lower(), (one.file_format,)):
        yield "other_suffix"


def _of_copies(image_set: ImageSet, split_of: np.ndarray) -> Iterator[Finding]:
    """Yields what is wrong with images that are the same to the byte."""
    by_hash = defaultdict(list)
    for index, digest in enumerate(image_set.hashes):
        if digest != NO_BYTES:
            by_hash[digest].append(index)
    yield from _of_groups(image_set, split_of, [same for same in by_hash.values() if len(same) > 1], "", "same bytes")


def _of_near_copies(image_set: ImageSet, split_of: np.ndarray, seen: Sequence[Inspection]) -> Iterator[Finding]:
    """Yields what is wrong with images that look the same: near by perceptual hash, and pixel by pixel when shrunk."""
    first: dict[str, int] = {}
    for index, digest in enumerate(image_set.hashes):
        if seen[index].phash and not (seen[index].is_flat or seen[index].is_plain):
            first.setdefault(digest, index)
    candidates = np.array(list(first.values()), np.int64)
    hashes = np.array([int(seen[index].phash, 16) for index in candidates], np.uint64)
    pairs = near_pairs(hashes, _PHASH_BITS)
    looks = _standardized([seen[index].thumbnail for index in candidates])
    pairs = pairs[(looks[pairs[:, 0]] * looks[pairs[:, 1]]).sum(1) >= _LEAST_CORRELATION]
    yield from _of_groups(image_set, split_of, _linked(candidates, pairs), "near_", "look the same")


def _linked(candidates: np.ndarray, pairs: np.ndarray) -> list[list[int]]:
    """Returns the candidates that hang together by pairs of them, two or more each."""
    from scipy.sparse import coo_array  # not at every start
    from scipy.sparse.csgraph import connected_components

    size = len(candidates)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    groups = defaultdict(list)
    component = connected_components(links, directed=False)[1] if size else ()
    for place in np.unique(pairs):
        groups[component[place]].append(int(candidates[place]))
    return list(groups.values())


def near_pairs(hashes: np.ndarray, max_bits: int) -> np.ndarray:
    """Returns all pairs of hashes that differ in few bits.

    Of `max_bits + 1` bands, two such hashes have one in common at least; so only those that share a band are compared.

    Args:
        hashes: `(N,)` uint64.
        max_bits: In how many of the 64 bits they may differ.

    Returns:
        `(M, 2)` int64: pairs of indices, the lower first, in order.
    """
    width = -(-64 // (max_bits + 1))
    found = [np.empty((0, 2), np.int64)]
    for shift in range(0, 64, width):
        bands = hashes >> np.uint64(shift) & np.uint64((1 << width) - 1)
        order = np.argsort(bands, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(bands[order])) + 1):
            for start in range(0, len(members) if len(members) > 1 else 0, 1024):
                part = members[start : start + 1024]
                one, other = np.nonzero(np.bitwise_count(hashes[part][:, None] ^ hashes[members]) <= max_bits)
                pairs = np.stack([part[one], members[other]], axis=1)
                found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return np.unique(np.concatenate(found), axis=0)


def _standardized(thumbnails: Sequence[bytes]) -> np.ndarray:
    """Returns `(N, 256)` float32 of mean 0 and length 1 each, so that a dot product is a correlation."""
    pixels = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(-1, THUMBNAIL[0] * THUMBNAIL[1]).astype(np.float32)
    pixels = pixels - pixels.mean(1, keepdims=True)
    return pixels / np.maximum(np.linalg.norm(pixels, axis=1, keepdims=True), 1e-6)


def _of_groups(
    image_set: ImageSet, split_of: np.ndarray, groups: Sequence[list[int]], prefix: str, how: str
) -> Iterator[Finding]:
    """Yields duplicates, the worst first; a group of two classes in two splits is reported twice."""
    labels, paths = image_set.labels, image_set.paths
    kinds: dict[str, list[tuple[str, ...]]] = {"label_conflict": [], "duplicate_across_splits": [], "duplicate": []}
    for same in groups:
        wrong = {
            "label_conflict": len(set(labels[same])) > 1,
            "duplicate_across_splits": len(set(split_of[same]) - {""}) > 1,
        }
        for kind in [kind for kind, is_so in wrong.items() if is_so] or ["duplicate"]:
            kinds[kind].append(tuple(paths[index] for index in same))
    told: list[tuple[str, Severity, str]] = [
        ("label_conflict", "warning", f"images ({how}) of different classes; keep the right one"),
        ("duplicate_across_splits", "warning", f"images ({how}) are in two splits: what is known is tested; keep one"),
        ("duplicate", "note", f"images ({how}) come more than once"),
    ]
    for kind, severity, message in told:
        if kinds[kind]:
            yield Finding(prefix + kind, severity, message, tuple(kinds[kind]))


def _of_classes(image_set: ImageSet, splits: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    names, labels = image_set.class_names, image_set.labels
    train = np.bincount(labels[splits["train"]] if "train" in splits else labels, minlength=len(names))
    nowhere = np.bincount(labels, minlength=len(names)) == 0
    told = {
        Path(case[0]).name for finding in image_set.findings if finding.kind == "empty_class" for case in finding.cases
    }
    if empty := [name for name, is_empty in zip(names, nowhere, strict=True) if is_empty and name not in told]:
        yield Finding("class_without_images", "note", "a class without any image", tuple((name,) for name in empty))
    for split in ("val", "test"):
        if split in splits:
            lacking = (np.bincount(labels[splits[split]], minlength=len(names)) == 0) & (train > 0)
            if lacking.any():
                cases = tuple((names[label],) for label in np.flatnonzero(lacking))
                yield Finding(f"class_not_in_{split}", "note", f"has no images in {split}: nothing is measured", cases)
    if "test" in splits:
        yield from _of_few_test_images(image_set, splits["test"])
    most, least = int(train.argmax()), int(np.where(train > 0, train, train.max() + 1).argmin())
    if train[most] >= _IMBALANCE * train[least] > 0:
        message = (
            f"{train[most]} training images against {train[least]}; see `sampler=balanced`, "
            "`class_weights=balanced` and `monitor=val/balanced_acc`"
        )
        yield Finding("imbalance", "note", message, ((names[most], names[least]),))


def _of_few_test_images(image_set: ImageSet, test: np.ndarray) -> Iterator[Finding]:
    tested = np.bincount(image_set.labels[test], minlength=len(image_set.class_names))
    few = [int(label) for label in np.argsort(tested, kind="stable") if 0 < tested[label] < _FEW_TEST_IMAGES]
    if few:
        fewest = int(tested[few[0]])
        low, high = (f"{100 * limit:.0f}" for limit in wilson_interval(fewest, fewest))
        message = (
            f"has {counted(fewest, 'test image')}, below {_FEW_TEST_IMAGES}: {fewest} of {fewest} right would mean an "
            f"accuracy anywhere from {low} to {high} % [95 %]; add images"
            + ("" if "test" in image_set.splits else ", or give a larger `test_fraction`")
        )
        yield Finding("few_test_images", "warning", message, tuple((image_set.class_names[label],) for label in few))
