"""A manifest: a CSV, TSV or Parquet file with a row per image, its class, and perhaps its split and its group."""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import as_name, as_text, is_utf8
from lit_cnn.core.words import and_more
from lit_cnn.data.file_kinds import IMAGE_SUFFIXES
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import (
    EncodedImages,
    ImageSet,
    OpenFiles,
    class_order,
    files_on_disk,
    without_unlabelled,
)
from lit_cnn.data.sources.csv_table import csv_table, windows_text
from lit_cnn.data.sources.parquet import has_bytes, parquet_columns, parquet_images, parquet_texts, row_path
from lit_cnn.data.sources.walk import is_inside
from lit_cnn.data.split_names import split_of_name

ROLES = {"image": ("path", "image"), "label": ("label", "class"), "split": ("split",), "group": ("group",)}
"""What a column can be for, and what it is called where `columns` does not say: the first that is there."""

_BLANKS = "is listed with blanks around its path, which are passed over"
_BACKSLASHES = "is listed with backslashes, which are taken for slashes"
_NO_SUFFIX = "is listed without its suffix; there is no other image of that name"
_READ_OTHERWISE = (_BLANKS, _BACKSLASHES, _NO_SUFFIX)


MANIFEST_SUFFIXES = (".csv", ".tsv", ".parquet")
_KINDS = "a .csv, .tsv or .parquet file"


def load_manifest(
    file: Path,
    in_channels: int = 3,
    columns: Mapping[str, str] | None = None,
    outside_root: bool = False,
    open_files: OpenFiles = files_on_disk,
) -> ImageSet:
    """Reads the images that a manifest lists.

    Columns, others are passed over:

    - `path` (or `image`): a file in the manifest's folder or below, relative to it; in Parquet also the bytes of an
      image file, or a struct with a field `bytes`, as Hugging Face writes them. Bytes are copied once to the user's
      cache folder (see `parquet_images`);
    - `label` (or `class`): a name or a whole number; classes are sorted, as numbers if all are numbers;
    - `split`, optional: `train`, `val` or `test` in every row;
    - `group`, optional: images of one group stay together when a split is drawn; an empty cell stands alone.

    The manifest that each run keeps of its split is one too: put next to the images, it repeats that split.

    Files that are not there or are listed twice, empty cells and unknown splits are findings; of a row without a label
    the image is left out too.

    Args:
        file: Ends in .csv, .tsv or .parquet; its name without that becomes the set's.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        columns: Role (`image`, `label`, `split`, `group`) -> name of its column, where it is not the one above.
        outside_root: Whether files may also lie elsewhere: by absolute paths, `..` or links. A manifest from somebody
            else could otherwise have a run read, and keep, whatever image its user can.
        open_files: Gives the images in files, and their digests.

    Raises:
        UsageError: If a column is missing, every label is, or an image lies elsewhere.
    """
    if not file.is_file():
        raise UsageError("root", file, "no such file", f"give the manifest, {_KINDS}")
    if file.suffix.lower() not in MANIFEST_SUFFIXES:
        raise UsageError("root", file, f"a manifest is {_KINDS}")
    chosen, texts = _columns(file, columns or {})
    texts, read = (texts, []) if file.suffix.lower() == ".parquet" else _in_known_letters(file, texts)
    if not texts["label"]:
        raise UsageError("root", file, "lists no images")
    if texts.get("image") is None and open_files is not files_on_disk:
        reason = f"column {chosen['image']} holds images themselves, which are read from disk only"
        raise UsageError("root", file, reason, "copy it to this machine, or list paths")
    opened, paths, hashes, findings = _images(
        file, chosen["image"], texts.get("image"), (in_channels, outside_root, open_files)
    )
    labels, of_labels = _labels(chosen["label"], texts["label"], paths)
    texts = {role: [text.strip() for text in cells] for role, cells in texts.items()}
    class_names = class_order([label for label in labels if label])
    place = {name: label for label, name in enumerate(class_names)}
    splits, unknown = _splits(file, chosen["split"], texts["split"], paths) if "split" in texts else ({}, [])
    image_set = ImageSet(
        name=file.stem,
        source=str(file.resolve()),
        images=opened,
        labels=np.array([place.get(label, 0) for label in labels], np.int64),
        class_names=class_names,
        paths=paths,
        hashes=hashes,
        in_channels=in_channels,
        splits=splits,
        groups=texts.get("group"),
        findings=(*read, *findings, *of_labels, *unknown),
    )
    unlabelled = np.flatnonzero([not label for label in labels])
    return without_unlabelled(image_set, unlabelled, f"fill its {chosen['label']} or take its row away")


def listed_names(file: Path, columns: Mapping[str, str] | None = None) -> list[str]:
    """Returns what stands in a manifest's column of paths, with the blanks around it; see `load_manifest`.

    Raises:
        UsageError: As `load_manifest`.
    """
    return _columns(file, columns or {})[1].get("image", [])


def _columns(file: Path, columns: Mapping[str, str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Returns what the columns are called, and their cells as text; of images that it holds itself there are none."""
    if file.suffix.lower() != ".parquet":
        table = csv_table(file, [*columns.values(), *chain(*ROLES.values())])
        chosen = _choose_columns(file, table.columns, columns)
        return chosen, table.texts(chosen)
    chosen = _choose_columns(file, parquet_columns(file), columns)
    is_path = not has_bytes(file, chosen["image"])
    return chosen, parquet_texts(file, {role: name for role, name in chosen.items() if role != "image" or is_path})


def _in_known_letters(file: Path, texts: dict[str, list[str]]) -> tuple[dict[str, list[str]], list[Finding]]:
    """Returns the cells of a CSV file with those that are not UTF-8 read in the way that fits, and what was assumed.

    Paths of which some are there as they are written, byte for byte, were written so. Else they are Windows-1252, if
    some are there then. Where only labels and the like are not UTF-8, nothing says for sure that they are.

    Raises:
        UsageError: If they cannot be.
    """
    odd = {role: [row for row, cell in enumerate(cells) if not is_utf8(cell)] for role, cells in texts.items()}
    first = next(((role, rows[0]) for role, rows in odd.items() if rows), None)
    names = [texts["image"][row] for row in odd.get("image", ())]
    if first is None or _any_there(file.parent, names):
        return texts, []
    read = {role: {row: windows_text(texts[role][row]) for row in rows} for role, rows in odd.items()}
    decoded = [text for cells in read.values() for text in cells.values()]
    paths = [text for text in read.get("image", {}).values() if text is not None]
    are_there = _any_there(file.parent, paths)
    if None in decoded or (paths and not are_there):
        where = f"row {first[1] + 1}, {as_text(texts[first[0]][first[1]])}"
        raise UsageError("root", file, f"is not UTF-8 ({where})", "save it as UTF-8; spreadsheets call it CSV UTF-8")
    texts = {
        role: [read[role].get(row) or cell for row, cell in enumerate(cells)] if odd[role] else cells
        for role, cells in texts.items()
    }
    message = f"is not UTF-8 and read as Windows-1252: {texts[first[0]][first[1]]} in row {first[1] + 1}"
    if are_there:
        finding = Finding("not_utf8", "note", f"{message}; its files are there", ((file.name,),))
    else:
        finding = Finding("not_utf8", "warning", f"{message}; if that is wrong, save it as UTF-8", ((file.name,),))
    return texts, [finding]


def _labels(column: str, cells: Sequence[str], paths: Sequence[str]) -> tuple[list[str], list[Finding]]:
    """Returns labels without the blanks around them, except for what a folder on the way to such an image is called."""
    padded: dict[str, list[int]] = {}
    for row, cell in enumerate(cells):
        if cell != cell.strip() or "\n" in cell or "\r" in cell:
            padded.setdefault(cell, []).append(row)
    folders = {
        cell for cell, rows in padded.items() if any(cell in as_text(paths[row]).split("/")[:-1] for row in rows)
    }
    findings = []
    labels = [cell if cell in folders else cell.strip() for cell in cells]
    rows = [row for cell, members in padded.items() if cell not in folders for row in members]
    if stripped := [row for row in rows if labels[row] and labels[row] != cells[row]]:
        message = f"has blanks around its {column}, which are passed over"
        findings.append(Finding("blanks", "note", message, tuple((paths[row],) for row in stripped)))
    if broken := [row for row in rows if "\n" in labels[row] or "\r" in labels[row]]:
        message = f"row {broken[0] + 1} has a line break in its {column}{and_more(len(broken))}; close its quote"
        findings.append(Finding("line_break", "error", message, tuple((paths[row],) for row in broken)))
    return labels, findings


def _choose_columns(file: Path, there: Sequence[str], given: Mapping[str, str]) -> dict[str, str]:
    if unknown := sorted(set(given) - set(ROLES)):
        raise UsageError("columns", unknown[0], f"name the columns of {', '.join(ROLES)}")
    shown = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    chosen = {}
    for role, usual in ROLES.items():
        candidates = (given[role],) if role in given else usual
        found = [name for name in candidates if name in there]
        if found:
            if there.count(found[0]) > 1:
                raise UsageError("root", file, f"has two columns {found[0]}", "rename one")
            chosen[role] = found[0]
        elif role in given:
            raise UsageError("columns", f"{role}={given[role]}", f"{file} has no such column, it has {shown}")
        elif role in ("image", "label"):
            raise UsageError(
                "root",
                file,
                f"has no column {' or '.join(usual)}, it has {shown}",
                f"rename one, or say `columns.{role}=NAME`",
            )
    return chosen


def _splits(
    file: Path, column: str, texts: list[str], paths: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[Finding]]:
    """Returns the rows of each split, and of what rows the split is unknown: those are in none."""
    meaning = {text: split_of_name(text) for text in set(texts)}
    found: dict[str, list[int]] = {}
    unknown = []
    for row, text in enumerate(texts):
        if meaning[text]:
            found.setdefault(meaning[text], []).append(row)
        else:
            unknown.append(row)
    findings = []
    message = f"no row's {column} is train; leave the column out to have the split drawn"
    if unknown:
        message = (
            f"row {unknown[0] + 1} has {column} '{texts[unknown[0]]}'{and_more(len(unknown))}; say train, val or test "
            "in every row, or leave the column out to have the split drawn"
        )
        findings = [Finding("unknown_split", "error", message, tuple((paths[row],) for row in unknown))]
    if "train" not in found:
        raise UsageError("root", file, message)
    return {split: np.array(rows, np.int64) for split, rows in found.items()}, findings


def _images(
    file: Path, column: str, names: list[str] | None, how: tuple[int, bool, OpenFiles]
) -> tuple[EncodedImages, list[str], list[str], list[Finding]]:
    """Returns the images, a path and the SHA-256 of each, and what is wrong; without names the column holds bytes."""
    in_channels, outside_root, open_files = how
    if names is None:
        spans, paths, hashes = parquet_images(file, column, in_channels)
        empty = np.flatnonzero(spans.places[:, 2] == 0).tolist()
        return spans, paths, hashes, [*_without_image(column, paths, empty)]
    others = parquet_columns(file) if file.suffix.lower() == ".parquet" else []
    instead = next((name for name in ROLES["image"] if name in others and has_bytes(file, name)), "")
    files, paths, findings = _listed_files(file, column, names, outside_root, instead)
    opened, hashes = open_files(files, in_channels)
    return opened, paths, hashes, findings


def _listed_files(
    file: Path, column: str, names: list[str], outside_root: bool, instead: str
) -> tuple[list[Path], list[str], list[Finding]]:
    """Returns the files and the names of all rows, that of a file listed again with its row, and what is wrong.

    `instead` is a column that holds the images themselves, if any.

    Raises:
        UsageError: If a row is a file that is not to be opened.
    """
    listed = _Listed(file.parent)
    paths, missing, otherwise = _as_there(file.parent, names, listed)
    files = [file.parent / path for path in paths]
    first: dict[str, int] = {}
    again = [row for row, path in enumerate(paths) if first.setdefault(path, row) != row]
    for row in missing:
        if os.path.exists(files[row]) and not os.path.isdir(files[row]):
            raise UsageError("root", file, f"row {row + 1}, {names[row]}, is a pipe or device", "take it away")
    outside = None if outside_root else _first_outside(file.parent, files, set(missing))
    if outside is not None:
        raise UsageError(
            "root",
            file,
            f"row {outside + 1}, {names[outside]}, is a file outside of the manifest's folder",
            "put it there, or say `outside_root=True` if you trust the manifest",
        )
    findings = [*_without_image(column, paths, [row for row, name in enumerate(names) if not name.strip()])]
    if again:
        path = paths[again[0]]
        message = f"rows {first[path] + 1} and {again[0] + 1} are both {path}{and_more(len(again))}; keep one"
        for row in again:
            paths[row] = f"{paths[row]} (row {row + 1})"
        findings.append(Finding("listed_twice", "error", message, tuple((paths[row],) for row in again)))
    if missing:
        message = (
            f"{files[missing[0]]} is not there{and_more(len(missing))}; paths are relative to the manifest's folder"
            + (f", or say `columns.image={instead}` for the images in it" if instead else "")
            + (f"; {' and '.join(several)} are: write which" if (several := listed.images(paths[missing[0]])) else "")
        )
        findings.append(Finding("missing_file", "error", message, tuple((paths[row],) for row in missing)))
    return files, paths, [*findings, *otherwise]


def _as_there(folder: Path, names: Sequence[str], listed: "_Listed") -> tuple[list[str], list[int], list[Finding]]:
    """Returns the path of each row as the file in the folder is called, rows without one, and what was read otherwise.

    The name as it is written comes first; then without blanks around it, then with a slash for each backslash, as
    Windows writes paths, then with the suffix of the one image that is called so but for its suffix.
    """
    top, paths, missing = str(folder), [], []
    otherwise: dict[str, list[tuple[str, ...]]] = {message: [] for message in _READ_OTHERWISE}
    for row, name in enumerate(names):
        written = name.strip()
        path = _normal(name) if written else row_path(row)
        if written and not os.path.isfile(os.path.join(top, path)):
            slashes = written.replace("\\", "/")
            for message, other in (
                ("", as_name(name)),
                (_BLANKS, written),
                (_BLANKS, as_name(written)),
                (_BACKSLASHES, slashes),
                (_NO_SUFFIX, listed.only_image(slashes)),
            ):
                if other and os.path.isfile(os.path.join(top, other)):
                    path = _normal(other)
                    if message:
                        otherwise[message].append((path,))
                    break
            else:
                missing.append(row)
        paths.append(path)
    findings = [Finding("read_otherwise", "note", text, tuple(cases)) for text, cases in otherwise.items() if cases]
    return paths, missing, findings


def _normal(name: str) -> str:
    # As the disk has it: where the locale is ASCII, Python has no other letters in names.
    name = name if name.isascii() else os.fsdecode(name.encode("utf-8", "surrogateescape"))
    return Path(os.path.normpath(name)).as_posix()


def _any_there(folder: Path, names: Sequence[str]) -> bool:
    return len(_as_there(folder, names, _Listed(folder))[1]) < len(names)


class _Listed:
    """The images in folders, by their names without suffix."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._images: dict[str, dict[str, list[str]]] = {}

    def only_image(self, path: str) -> str:
        """Returns the path of the one image that is called as the path's last part but for its suffix; else nothing."""
        found = self.images(path)
        return os.path.join(os.path.dirname(path), found[0]) if len(found) == 1 else ""

    def images(self, path: str) -> list[str]:
        """Returns the names of all images that are called as the path's last part but for their suffix."""
        folder, stem = os.path.split(_normal(path))
        if folder not in self._images:
            found: dict[str, list[str]] = {}
            with suppress(OSError):
                for name in sorted(os.listdir(self.folder / folder)):
                    if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                        found.setdefault(os.path.splitext(name)[0], []).append(name)
            self._images[folder] = found
        return self._images[folder].get(stem, [])


def _without_image(column: str, paths: Sequence[str], rows: Sequence[int]) -> Iterator[Finding]:
    if rows:
        message = f"row {rows[0] + 1} has no {column}{and_more(len(rows))}; fill it or take the row away"
        yield Finding("no_image", "error", message, tuple((paths[row],) for row in rows))


def _first_outside(folder: Path, files: Sequence[Path], missing: Container[int]) -> int | None:
    """Returns the index of the first file there that does not lie in the folder or below it, links followed."""
    top = os.path.realpath(folder)
    inside: dict[str, bool] = {}  # of each folder: to follow the links of every file anew takes seconds
    for index, path in enumerate(files):
        if index in missing:
            continue
        here = os.path.dirname(path)
        if here not in inside:
            inside[here] = is_inside(os.path.realpath(here), top)
        if not (is_inside(os.path.realpath(path), top) if os.path.islink(path) else inside[here]):
            return index
    return None
