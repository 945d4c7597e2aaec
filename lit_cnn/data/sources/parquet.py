"""Parquet: columns as text, and images as bytes that can be reached one by one."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_hashes import with_progress
from lit_cnn.core.files import replace_atomically
from lit_cnn.data.image_set import SpanImages
from lit_cnn.data.index_cache import hexadecimal, index_file, remembered, sha256_row


def parquet_columns(file: Path) -> list[str]:
    """Returns the names of a Parquet file's columns.

    Raises:
        UsageError: If it is none.
    """
    return list(_schema(file).names)


def has_bytes(file: Path, column: str) -> bool:
    """Returns whether a column holds images themselves and not their paths.

    Raises:
        UsageError: If it holds neither text, bytes nor structs with a field `bytes`.
    """
    import pyarrow as pa

    kind = _schema(file).field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    if any(is_one(kind) for is_one in (types.is_binary, types.is_large_binary, types.is_binary_view)):
        return True
    if _is_text(kind):
        return False
    raise UsageError("root", file, f"column {column} is of type {kind}", "give paths or the bytes of image files")


def parquet_texts(file: Path, columns: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns columns of text or whole numbers as text, with the blanks around it; an empty cell is the empty text.

    Args:
        file: The Parquet file.
        columns: What a column is for -> its name.

    Raises:
        UsageError: If a column holds something else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema(file)
    for name in columns.values():
        kind = schema.field(name).type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not _is_text(kind) and not pa.types.is_integer(kind):
            raise UsageError("root", file, f"column {name} is of type {kind}", "give text or whole numbers")
    try:
        # As plain text, whatever kind of text or categories the file has.
        text = pa.schema([(name, pa.string()) for name in columns.values()])
        table = parquet.read_table(file, columns=text.names, schema=text, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise UsageError("root", file, f"cannot be read ({error})", "put a whole copy there") from error
    return {
        role: ["" if value is None else value for value in table[name].to_pylist()] for role, name in columns.items()
    }


def parquet_images(file: Path, column: str, in_channels: int) -> tuple[SpanImages, list[str], list[str]]:
    """Returns the images in a column of bytes, a relative path for each (see `row_path`), and their SHA-256.

    The bytes are copied once, one after the other, into a file in the user's cache folder, as large as they are: out of
    Parquet one image cannot be read without the hundreds that share its group of rows. An empty cell gives no bytes.

    Raises:
        UsageError: If the copy cannot be written.
    """
    index = index_file(f"parquet {column}", [file])
    copy = index.with_suffix(".bytes")
    if not copy.is_file():
        index.unlink(missing_ok=True)
    found = remembered(index, lambda: _copy_images(file, column, copy))
    sizes = found["sizes"]
    places = np.stack([np.zeros_like(sizes), np.cumsum(sizes) - sizes, sizes], axis=1)
    paths = [row_path(row) for row in range(len(sizes))]
    return SpanImages(str(file), [copy], places, paths, in_channels), paths, hexadecimal(found["digests"])


def row_path(row: int) -> str:
    """Returns what an image is called whose row, counted from 0, says no path."""
    return f"row {row + 1:08d}"


def _copy_images(file: Path, column: str, copy: Path) -> dict[str, np.ndarray]:
    sizes, digests = [], []
    try:
        with replace_atomically(copy) as temporary, temporary.open("wb") as output:
            for content in _contents(file, column):
                output.write(content)
                sizes.append(len(content))
                digests.append(sha256_row(content))
    except OSError as error:
        raise UsageError(
            "root",
            file,
            f"its images cannot be copied to {copy.parent} ({error})",
            "make room there, or set XDG_CACHE_HOME to another folder",
        ) from error
    return {"sizes": np.array(sizes, np.int64), "digests": np.stack(digests)}


def _contents(file: Path, column: str) -> Iterator[bytes]:
    from pyarrow import parquet

    opened = parquet.ParquetFile(file)

    def cells() -> Iterator[Any]:
        for batch in opened.iter_batches(batch_size=64, columns=[column]):
            yield from batch.column(0).to_pylist()

    for cell in with_progress(cells(), opened.metadata.num_rows, "copying images", "image"):
        yield (cell["bytes"] if isinstance(cell, dict) else cell) or b""


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _schema(file: Path) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return parquet.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise UsageError("root", file, f"is no Parquet file ({error})", "put a whole copy there") from error
