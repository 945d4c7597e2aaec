"""A manifest: a CSV or Parquet file with a row per image, its class, and perhaps its split and its group."""

import os
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import hash_files
from lit_cnn.core.words import and_more
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import FileImages, ImageSet, SpanImages, class_order, without_unlabelled
from lit_cnn.data.sources.parquet import has_bytes, parquet_columns, parquet_images, parquet_texts, row_path
from lit_cnn.data.sources.walk import is_inside
from lit_cnn.data.split_names import split_of_name

ROLES = {"image": ("path", "image"), "label": ("label", "class"), "split": ("split",), "group": ("group",)}
"""What a column can be for, and what it is called where `columns` does not say: the first that is there."""


def load_manifest(
    file: Path, in_channels: int = 3, columns: Mapping[str, str] | None = None, outside_root: bool = False
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
        file: Ends in .csv or .parquet; its name without that becomes the set's.
        in_channels: 1 (gray) or 3 (RGB): what images are converted to.
        columns: Role (`image`, `label`, `split`, `group`) -> name of its column, where it is not the one above.
        outside_root: Whether files may also lie elsewhere: by absolute paths, `..` or links. A manifest from somebody
            else could otherwise have a run read, and keep, whatever image its user can.

    Raises:
        UsageError: If a column is missing, every label is, or an image lies elsewhere.
    """
    if not file.is_file():
        raise UsageError("root", file, "no such file", "give the manifest, a .csv or .parquet file")
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise UsageError("root", file, "a manifest is a .csv or a .parquet file")
    is_parquet = file.suffix.lower() == ".parquet"
    chosen = _choose_columns(file, parquet_columns(file) if is_parquet else _csv_columns(file), columns or {})
    holds_bytes = is_parquet and has_bytes(file, chosen["image"])
    wanted = {role: name for role, name in chosen.items() if not (holds_bytes and role == "image")}
    texts = parquet_texts(file, wanted) if is_parquet else _csv_texts(file, wanted)
    labels = texts["label"]
    if not labels:
        raise UsageError("root", file, "lists no images")
    class_names = class_order([label for label in labels if label])
    place = {name: label for label, name in enumerate(class_names)}
    images, paths, hashes, findings = _images(file, chosen["image"], texts.get("image"), in_channels, outside_root)
    splits, unknown = _splits(file, chosen["split"], texts["split"], paths) if "split" in texts else ({}, [])
    image_set = ImageSet(
        name=file.stem,
        source=str(file.resolve()),
        images=images,
        labels=np.array([place.get(label, 0) for label in labels], np.int64),
        class_names=class_names,
        paths=paths,
        hashes=hashes,
        in_channels=in_channels,
        splits=splits,
        groups=texts.get("group"),
        findings=(*findings, *unknown),
    )
    unlabelled = np.flatnonzero([not label for label in labels])
    return without_unlabelled(image_set, unlabelled, f"fill its {chosen['label']} or take its row away")


def _csv_columns(file: Path) -> list[str]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        with csv.open_csv(file) as reader:
            return list(reader.schema.names)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise UsageError("root", file, f"cannot be read as CSV ({error})", "save it as UTF-8, with commas") from error


def _csv_texts(file: Path, columns: Mapping[str, str]) -> dict[str, list[str]]:
    import pyarrow as pa
    from pyarrow import csv

    # All as text: "01" is no 1, and a class may be called NA.
    types = csv.ConvertOptions(
        column_types=dict.fromkeys(columns.values(), pa.string()), include_columns=list(columns.values())
    )
    try:
        table = csv.read_csv(file, convert_options=types)
    except (pa.ArrowInvalid, OSError) as error:
        raise UsageError("root", file, f"cannot be read as CSV ({error})", "save it as UTF-8, with commas") from error
    return {role: [text.strip() for text in table[name].to_pylist()] for role, name in columns.items()}


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
    file: Path, column: str, names: list[str] | None, in_channels: int, outside_root: bool
) -> tuple[FileImages | SpanImages, list[str], list[str], list[Finding]]:
    """Returns the images, a path and the SHA-256 of each, and what is wrong; without names the column holds bytes."""
    if names is None:
        spans, paths, hashes = parquet_images(file, column, in_channels)
        empty = np.flatnonzero(spans.places[:, 2] == 0).tolist()
        return spans, paths, hashes, [*_without_image(column, paths, empty)]
    others = parquet_columns(file) if file.suffix.lower() == ".parquet" else []
    instead = next((name for name in ROLES["image"] if name in others and has_bytes(file, name)), "")
    files, paths, findings = _listed_files(file, column, names, outside_root, instead)
    return FileImages(files, in_channels), paths, hash_files(files), findings


def _listed_files(
    file: Path, column: str, names: list[str], outside_root: bool, instead: str
) -> tuple[list[Path], list[str], list[Finding]]:
    """Returns the files and the names of all rows, that of a file listed again with its row, and what is wrong.

    `instead` is a column that holds the images themselves, if any.

    Raises:
        UsageError: If a row is a file that is not to be opened.
    """
    paths = [Path(os.path.normpath(name)).as_posix() if name else row_path(row) for row, name in enumerate(names)]
    files = [file.parent / path for path in paths]
    first: dict[str, int] = {}
    again = [row for row, path in enumerate(paths) if first.setdefault(path, row) != row]
    missing = [row for row, path in enumerate(files) if names[row] and not os.path.isfile(path)]
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
    findings = [*_without_image(column, paths, [row for row, name in enumerate(names) if not name])]
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
        )
        findings.append(Finding("missing_file", "error", message, tuple((paths[row],) for row in missing)))
    return files, paths, findings


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
