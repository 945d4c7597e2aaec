import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_cnn.data.audit import check_data
from lit_cnn.data.sources import load_image_set, load_manifest
from lit_cnn.data.sources.csv_table import csv_table
from tests.data.sources.test_manifest import write_csv
from tests.data.test_datasets import refused, save_images

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=8)
ROWS = st.lists(st.tuples(TEXT, TEXT.filter(lambda text: "\r" not in text), TEXT), min_size=1, max_size=6)


@settings(deadline=None)
@given(
    rows=ROWS,
    delimiter=st.sampled_from(",;\t|"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    terminator=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    excel=st.booleans(),
)
def test_every_dialect_is_read_as_it_was_written(
    rows: Sequence[Sequence[str]], delimiter: str, quoting: Any, terminator: str, encoding: str, excel: bool
) -> None:
    text = io.StringIO()
    # Python quotes a cell with a letter of its line's end in it.
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator="\r\n")
    writer.writerows([("path", "label", "note, or; what"), *rows])
    lines = text.getvalue()
    if terminator == "\n" and "\r" not in "".join(map("".join, rows)):
        lines = lines.replace("\r\n", "\n")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.csv"
        file.write_bytes((f"sep={delimiter}{terminator}" * excel + lines).encode(encoding))
        found = csv_table(file, ("path", "label")).texts({"image": "path", "label": "label", "group": "note, or; what"})
    assert list(zip(*found.values(), strict=True)) == [tuple(row) for row in rows]


def test_line_breaks_in_cells_of_a_large_file(tmp_path: Path) -> None:
    folder = save_images(tmp_path, *(f"{number}.png" for number in range(6)))
    note = '"the owner said, ""fine""\n' + "\n" * 300_000 + '"'
    write_csv(folder / "a.csv", "path,label,note", *(f"{number}.png,{'ab'[number % 2]},{note}" for number in range(6)))
    assert (folder / "a.csv").stat().st_size > 1 << 20
    assert load_manifest(folder / "a.csv").labels.tolist() == [0, 1] * 3


def test_tabs_and_padded_names_of_columns(tmp_path: Path) -> None:
    folder = save_images(tmp_path, "0.png", "1.png")
    (folder / "a.tsv").write_text("path\tlabel\n0.png\ta\n1.png\tb\n")
    assert load_image_set("manifest", folder / "a.tsv").class_names == ("a", "b")
    assert check_data(folder / "a.tsv").num_images == {"all": 2}
    pets = load_manifest(write_csv(folder / "a.csv", "path, label", "0.png, a", "1.png, b"))
    assert pets.class_names == ("a", "b")
    assert [(found.kind, found.severity, len(found.cases)) for found in pets.findings] == [("blanks", "note", 2)]


def test_rows_of_other_lengths_are_named(tmp_path: Path) -> None:
    folder = save_images(tmp_path, "0.png", "1.png")
    file = write_csv(folder / "a.csv", "path,label", "0.png,a", "1.png,b,c", "x", "0.png,a")
    assert "row 2 has 3 cells where the first line has 2: 1.png,b,c; put a cell" in refused(load_manifest, file)
    file.write_bytes(b"path,label\n0.png,a\n\xe9,b,c\n")
    assert "row 2 has 3 cells" in refused(load_manifest, file)
    file = write_csv(folder / "b.csv", "path,label", '0.png,"a', "1.png,b")  # a quote that is not closed
    assert "row 1 has a line break in its label; close its quote" in refused(load_image_set, "manifest", file)


@pytest.mark.parametrize(
    ("name", "cell", "label", "kinds"),
    [
        ("Käfer/0.png", "Käfer/0.png", "Käfer", ["not_utf8 note"]),  # its file is there: unmistakable
        ("Käfer/0.png", "Käfer\\0.png", "Käfer", ["not_utf8 note", "read_otherwise note"]),
        ("0.png", "0.png", "Käfer", ["not_utf8 warning"]),
    ],
)
def test_windows_1252_is_read_and_told(name: str, cell: str, label: str, kinds: list[str], tmp_path: Path) -> None:
    folder = save_images(tmp_path, name, "1.png")
    (folder / "a.csv").write_bytes(f"path;label\n{cell};{label}\n1.png;b\n".encode("cp1252"))
    pets = load_image_set("manifest", folder / "a.csv")
    assert pets.class_names == ("Käfer", "b") and list(pets.paths) == [name, "1.png"]
    assert [f"{found.kind} {found.severity}" for found in pets.findings] == kinds
    assert "read as Windows-1252: " in pets.findings[0].message


def test_other_code_pages_are_not_guessed(tmp_path: Path) -> None:
    folder = save_images(tmp_path, "0.png", "1.png")
    pages = {"cp1251": "кошка", "cp1253": "γάτα", "shift-jis": "猫", "euc-jp": "ネコ", "gbk": "猫咪"}
    for encoding, label in pages.items():
        (folder / "a.csv").write_bytes(f"path,label\n0.png,{label}\n1.png,b\n".encode(encoding))
        assert "save it as UTF-8; spreadsheets call it CSV UTF-8" in refused(load_manifest, folder / "a.csv")
    (folder / "a.csv").write_bytes("path,label\nš0.png,a\n1.png,b\n".encode("cp1250"))
    assert "is not UTF-8 (row 1, %9A0.png)" in refused(load_manifest, folder / "a.csv")


def test_names_as_they_are_on_disk_are_found(tmp_path: Path) -> None:
    folder = save_images(tmp_path, "0.png", "1.png")
    os.rename(folder / "0.png", os.fsencode(folder) + b"/caf\xe9.png")
    (folder / "a.csv").write_bytes(b"path,label\ncaf\xe9.png,a\n1.png,b\n")  # as `ls` lists them
    assert list(load_image_set("manifest", folder / "a.csv").paths) == ["caf%E9.png", "1.png"]
