import os
import subprocess
import sys
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from lit_cnn.core.csv_text import csv_text
from lit_cnn.core.file_names import all_as_text, as_name, as_text, in_sentence, is_utf8, name_there

PIECES = [b"%", b"E9", b"%E9", b"\xe9", "é".encode(), b"%25", b"a", b"/", "猫".encode()[:2]]
NAMES = st.binary(max_size=12) | st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join)


@given(NAMES, NAMES)
@example(b"caf\xe9.jpg", b"caf%E9.jpg")
@example(b"100%25\xe9", b"100%\xe9")
def test_a_name_becomes_text_and_comes_back(raw: bytes, other: bytes) -> None:
    name = os.fsdecode(raw)
    text = as_text(name)
    assert as_text(text) == text and text.encode("utf-8").decode("utf-8") == text
    if is_utf8(name):
        assert text == raw.decode("utf-8")
    else:
        assert as_name(text) == name and text != name and text.isprintable() >= name.isprintable()
        if not is_utf8(os.fsdecode(other)):
            assert (as_text(os.fsdecode(other)) == text) == (other == raw)


def test_bytes_that_are_not_utf8_are_written_as_in_a_url() -> None:
    assert as_text(os.fsdecode(b"50% caf\xe9/\xc3\xa9.jpg")) == "50%25 caf%E9/é.jpg"
    assert as_text("50% café") == "50% café"  # its own text
    assert in_sentence(os.fsdecode(b"50 % of caf\xe9")) == "50 % of caf%E9"
    assert as_text("\ud83d") == "%ED%A0%BD"  # half of an emoji, out of JSON
    assert all_as_text({"a": [os.fsdecode(b"\xe9"), 1], "b": None}) == {"a": ["%E9", 1], "b": None}


def test_what_is_there_is_found_under_its_text(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(raw)).touch()
    assert name_there(f"{tmp_path}/caf%E9") == os.fsdecode(raw)
    (tmp_path / "caf%E9").touch()
    assert name_there(f"{tmp_path}/caf%E9") == f"{tmp_path}/caf%E9"


def test_the_text_does_not_depend_on_the_locale(repo_root: Path) -> None:
    code = (
        "import os, sys; from lit_cnn.core.file_names import *; name = os.fsdecode(b'\\xc3\\xa9\\xe9');"
        "assert sys.getfilesystemencoding() == 'ascii' and as_name(as_text(name)) == name;"
        "print(ascii(as_text(name)), ascii(as_text(os.fsdecode(b'\\xc3\\xa9'))))"
    )
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONPATH": str(repo_root)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "'\\xe9%E9' '\\xe9'\n"


def test_cells_with_any_line_break_are_quoted() -> None:
    rows = [("a\rb", "c"), (" d ", 'e"f'), ("g\nh", ""), ("i\r\n", 1)]
    assert csv_text(rows) == '"a\rb",c\n d ,"e""f"\n"g\nh",\n"i\r\n",1\n'
