"""Names of files as text. On disk they are bytes; text that is stored or sent has to be UTF-8, which not all bytes are.

One rule everywhere: a name that is UTF-8 is its own text. Of another, each byte that is not UTF-8 is written as in a
URL, `caf%E9.jpg`, and so is a `%` in it: such a text leads back to that name and to no other of its kind.
"""

import os
import re
from typing import Any
from urllib.parse import unquote_to_bytes

_SURROGATE = re.compile("[\udc80-\udcff]")  # how Python writes a byte of a name that it cannot decode
_ESCAPED = re.compile("[%\udc80-\udcff]")


def as_text(name: str) -> str:
    """Returns the name or path of a file, as Python gives it, as text that UTF-8 can hold.

    It does not depend on the locale, whose encoding Python takes names to be in.
    """
    if name.isascii():
        return name
    text = _decoded(name)
    return _ESCAPED.sub(_per_cent, text) if _SURROGATE.search(text) else text


def as_name(text: str) -> str:
    """Returns the name or path that `as_text` gave this text for, as Python takes it to open the file."""
    if "%" in text:
        # One that is UTF-8 is never written so: "100%25.jpg" is called that.
        escaped = os.fsdecode(unquote_to_bytes(text))
        if as_text(escaped) == text and escaped != text:
            return escaped
    return text if text.isascii() else os.fsdecode(text.encode("utf-8", "surrogateescape"))


def name_there(text: str) -> str:
    """Returns the name or path of what is there under this text: so written, or what `as_text` gave this text for."""
    written = text if text.isascii() else os.fsdecode(text.encode("utf-8", "surrogateescape"))
    return written if os.path.lexists(written) else as_name(text)


def all_as_text(value: Any) -> Any:
    """Returns plain values, such as options, with every text in them as `as_text` gives it."""
    if isinstance(value, dict):
        return {name: all_as_text(each) for name, each in value.items()}
    if isinstance(value, list):
        return [all_as_text(each) for each in value]
    return as_text(value) if isinstance(value, str) else value


def is_utf8(name: str) -> bool:
    """Returns whether the name of a file, as Python gives it, is UTF-8 on disk."""
    return name.isascii() or not _SURROGATE.search(_decoded(name))


def in_sentence(text: str) -> str:
    """Returns a text that may mention names, as Python gives them, as text that UTF-8 can hold; not to be read back."""
    return text if text.isascii() else _SURROGATE.sub(_per_cent, _decoded(text))


def _decoded(name: str) -> str:
    try:
        # Where the locale is ASCII, Python takes every other letter for bytes that it cannot decode.
        return name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # other halves of surrogate pairs, out of JSON: no name of a file has them
        return name.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _per_cent(found: re.Match[str]) -> str:
    return f"%{ord(found[0]) & 0xFF:02X}"
