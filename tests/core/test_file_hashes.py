import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path

import pytest

from lit_cnn.core import file_hashes
from lit_cnn.core.file_hashes import default_cache_file, hash_files
from lit_cnn.core.files import sha256_of_file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    (tmp_path / "images").mkdir()
    paths = [tmp_path / "images" / f"{number}.png" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(b"content %d" % number)
    return paths


def hashes_of(files: list[Path]) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def change_bytes_alone(path: Path, content: bytes) -> None:
    """Leaves size, modification time and inode as they are, as `cp -p` over a file can; ctime cannot be set back."""
    before = path.stat()
    assert len(content) == before.st_size
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_hashes_come_in_the_order_of_the_files(files: list[Path]) -> None:
    expected = hashes_of(files)
    assert hash_files(files) == expected
    assert hash_files(files[::-1]) == expected[::-1]
    assert hash_files([files[2], files[2]]) == [expected[2]] * 2
    assert hash_files([]) == []


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read, as they come."""
    read: list[Path] = []

    def count(path: Path) -> str:
        read.append(path)
        return sha256_of_file(path)

    monkeypatch.setattr(file_hashes, "sha256_of_file", count)
    return read


def test_a_second_scan_reads_no_file(files: list[Path], read_files: list[Path]) -> None:
    before = hash_files(files)
    assert sorted(read_files) == files
    read_files.clear()
    assert hash_files(files) == before and read_files == []


def test_a_file_that_another_was_copied_over_with_its_time_is_read_again(files: list[Path]) -> None:
    hash_files(files)
    change_bytes_alone(files[2], b"CONTENT X")
    assert hash_files(files) == hashes_of(files)


def test_the_cache_of_an_earlier_version_is_opened_and_its_hashes_are_not_believed(files: list[Path]) -> None:
    cache = default_cache_file()
    cache.parent.mkdir(parents=True)
    with contextlib.closing(sqlite3.connect(cache)) as database:
        database.execute("CREATE TABLE hashes (path TEXT PRIMARY KEY, size INT, mtime_ns INT, inode INT, sha256 TEXT)")
        for path in files:
            status = path.stat()
            row = (str(path), status.st_size, status.st_mtime_ns, status.st_ino, "0" * 64)
            database.execute("INSERT INTO hashes VALUES (?, ?, ?, ?, ?)", row)
        database.commit()
    assert hash_files(files) == hash_files(files) == hashes_of(files)


def test_a_file_is_read_again_when_it_looks_changed(files: list[Path]) -> None:
    hash_files(files)
    later, longer, replaced, same, _ = files
    change_bytes_alone(later, b"CONTENT X")
    os.utime(later, ns=(0, later.stat().st_mtime_ns + 1))
    times = longer.stat()
    longer.write_bytes(b"content longer")
    os.utime(longer, ns=(times.st_atime_ns, times.st_mtime_ns))
    times = replaced.stat()
    other = replaced.with_name("other")
    other.write_bytes(b"CONTENT X")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(replaced)
    assert hash_files(files) == hashes_of(files)
    assert hash_files([same]) == hashes_of([same])


def test_the_cache_lies_in_the_users_cache_folder(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "my_cache"))
    hash_files(files)
    assert default_cache_file() == tmp_path / "my_cache" / "lit_cnn" / "file_hashes.sqlite"
    assert default_cache_file().is_file()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_file() == tmp_path / "home" / ".cache" / "lit_cnn" / "file_hashes.sqlite"


def test_a_cache_that_cannot_be_made_is_harmless(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way of a folder")
    assert hash_files(files, tmp_path / "file" / "cache.sqlite") == hashes_of(files)


def test_a_cache_that_cannot_be_written_is_harmless(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    hash_files(files[:2], cache)
    with sqlite3.connect(cache) as database:  # holds for root, too, unlike the file's mode
        database.execute("CREATE TRIGGER no BEFORE INSERT ON hashes_2 BEGIN SELECT RAISE(ABORT, 'read-only'); END")
    database.close()
    assert hash_files(files, cache) == hashes_of(files)


def test_a_cache_that_is_no_database_is_harmless(files: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "cache.sqlite"
    cache.write_bytes(b"this is no database, and long enough to be taken for one" * 20)
    assert hash_files(files, cache) == hashes_of(files)


def test_more_files_than_one_query_takes(tmp_path: Path, read_files: list[Path]) -> None:
    paths = [tmp_path / f"{number}" for number in range(1201)]
    for path in paths:
        path.write_text(path.name)
    first = hash_files(paths)
    assert first == hashes_of(paths)
    read_files.clear()
    assert hash_files(paths) == first and read_files == []


def test_many_files_are_told_of_on_stderr(
    files: list[Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hash_files(files[:1])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(file_hashes, "FEW_FILES", 3)
    assert hash_files(files) == hashes_of(files)
    printed = capsys.readouterr()
    assert printed.err == "hashing images: 4 files\n"  # a bar is for terminals
    assert printed.out == ""
