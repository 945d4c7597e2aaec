"""The letters of pictures: a font of this machine that has them, or words that can be drawn where none has.

matplotlib's DejaVu Sans has Latin, Greek, Cyrillic, Hebrew and Arabic letters; fonts are looked for only where others
are needed. matplotlib orders and joins letters (right to left, Arabic, Devanagari), also for pictures made with Pillow.
"""

import functools
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.ft2font import FT2Font

FONT_SIZE = 11  # pixels, of text in pictures made with Pillow
LINE_HEIGHT = 15  # pixels
_JOINERS = "\u200c\u200d\u200e\u200f"  # invisible, but they say how their neighbours are joined and ordered


class _Face(NamedTuple):
    """A font, where its file may hold several."""

    path: str
    place: int
    family: str


_faces: dict[str, _Face | None] = {}  # the font to take for each letter that was asked for


def drawable(texts: Iterable[str]) -> list[str]:
    r"""Returns texts as a picture can show them.

    A letter that no font here has, and one that nobody sees, such as a line break, is written as in Python: `\u732b`,
    `\n`. All blanks are a space.
    """
    return [written for written, _ in _written(texts)]


def class_labels(class_names: Sequence[str], longest: int = 24) -> list[str]:
    """Returns what stands for each class in a picture: its name, or `class 3` for that of label 3.

    The number is taken for a name of which most letters cannot be drawn, and for names that would look alike.

    Args:
        class_names: All of them, in label order.
        longest: Letters at most; longer names lose their middle.
    """
    written = _written(class_names)
    labels = [without_middle(name, longest) for name, _ in written]
    num_alike = Counter(labels)
    numbered = [
        label if num_alike[label] == 1 and 2 * num_lacking <= len(name) else f"class {number}"
        for number, (name, label, (_, num_lacking)) in enumerate(zip(class_names, labels, written, strict=True))
    ]
    if len(set(numbered)) < len(numbered):  # some class is really called so
        return [f"class {number}" for number in range(len(class_names))]
    return numbered


def note_on_labels(class_names: Sequence[str], labels: Sequence[str]) -> str:
    """Returns the line that goes with a picture whose `labels` are numbers in place of names; "" if none is."""
    pairs = enumerate(zip(class_names, labels, strict=True))
    names = [name for number, (name, label) in pairs if label == f"class {number}" != name]
    if not names:
        return ""
    text = "class N: label N, counted from 0"
    if not any(num_lacking for _, num_lacking in _written(names)):
        return text
    return f"{text}; no font here has the letters of its name (Debian: fonts-noto-core, fonts-noto-cjk)"


def without_middle(text: str, longest: int) -> str:
    """Returns a text of so many letters at most; a longer one loses its middle."""
    if len(text) <= longest:
        return text
    tail = text[len(text) - longest // 2 :]
    while tail and (unicodedata.combining(tail[0]) or unicodedata.category(tail[0])[0] == "M" or tail[0] in _JOINERS):
        tail = tail[1:]  # an accent without its letter
    return f"{text[: longest - longest // 2 - 1]}…{tail}"


def set_fonts(figure: "Figure", spell_out: bool = True) -> None:
    """Gives the texts of a figure fonts that have their letters, and takes them literally: `$` starts no formula.

    Args:
        figure: What is drawn next; ticks that get their texts later keep their letters.
        spell_out: Whether what no font here has is written as `drawable` does; else it stays as it is.
    """
    from matplotlib.text import Text

    texts = [text for text in figure.findobj(Text) if isinstance(text, Text) and text.get_text()]
    drawn = drawable(line for text in texts for line in text.get_text().split("\n"))
    place = 0
    for text in texts:
        text.set_parse_math(False)
        num_lines = text.get_text().count("\n") + 1
        written = "\n".join(drawn[place : place + num_lines])
        place += num_lines
        faces = {face: None for letter in written if (face := _faces.get(letter))}
        if faces:
            text.set_fontfamily([*text.get_fontfamily(), *map(_registered, faces)])
        if spell_out and written != text.get_text():
            text.set_text(written)


def text_width(text: str) -> float:
    """Returns the width, in pixels, of a text that `drawable` or `class_labels` gave."""
    return _set(text).get_width_height()[0] / 64


def draw_text(picture: Image.Image, left: int, middle: int, text: str, color: str = "black") -> None:
    """Draws a text that `drawable` or `class_labels` gave; its small letters stand around the row `middle`."""
    font = _set(text)
    font.draw_glyphs_to_bitmap()
    mask = np.asarray(font.get_image())
    if not mask.size:
        return
    above = (font.get_width_height()[1] - font.get_descent()) // 64 + 1  # rows above the baseline
    place = (left + font.get_bitmap_offset()[0] // 64, middle + round(0.36 * FONT_SIZE) - above)
    picture.paste(color, place, Image.fromarray(mask))


def _written(texts: Iterable[str]) -> list[tuple[str, int]]:
    """Returns each text as it can be drawn, and how many of its letters no font here has."""
    # macOS takes letters and accents of files' names apart.
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    faces = _faces_of(letter for text in composed for letter in text)
    return [_written_with(text, faces) for text in composed]


def _written_with(text: str, faces: dict[str, _Face | None]) -> tuple[str, int]:
    lacking = {letter for letter in text if _needs_a_font(letter) and faces[letter] is None}

    def write(letter: str) -> str:
        r"""Returns a letter as it is, a blank for any kind of blank, and what cannot be drawn as `\u732b`."""
        if unicodedata.category(letter) == "Zs":
            return " "
        if letter not in lacking and (letter in _JOINERS or letter.isprintable()):
            return letter
        return letter.encode("unicode_escape").decode("ascii")

    if not _fits("".join(map(write, text))):
        lacking = {letter for letter in text if not letter.isascii()}
    return "".join(map(write, text)), sum(letter in lacking for letter in text)


@functools.lru_cache(4096)
def _fits(text: str) -> bool:
    """Whether the fonts have the letters as they stand: an accent or vowel and what it stands on come from one font."""
    if text.isascii():
        return True
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph .* missing from font")
        try:
            _set(text)
        except UserWarning:
            return False
    return True


def _needs_a_font(letter: str) -> bool:
    """Whether a letter is to be looked for in fonts: it can be seen, and is not ASCII, which all of them have."""
    is_selector = "\ufe00" <= letter <= "\ufe0f" or "\U000e0100" <= letter <= "\U000e01ef"
    return letter.isprintable() and not letter.isascii() and not is_selector


def _faces_of(letters: Iterable[str]) -> dict[str, _Face | None]:
    """Returns the font to take for each letter that needs one, among others; None where none has it."""
    if missing := {letter for letter in letters if _needs_a_font(letter)} - _faces.keys():
        _faces.update(_search(missing))
    return _faces


def _search(letters: set[str]) -> dict[str, _Face | None]:
    """Finds as few fonts as possible that have the letters together."""
    from matplotlib import font_manager

    found: dict[str, _Face | None] = dict.fromkeys(letters)
    default = next(_opened(_default_path()))
    found.update(dict.fromkeys(_letters_in(default[1], letters), default[0]))
    missing = {letter for letter in letters if found[letter] is None}
    if not missing:
        return found
    # Not matplotlib's list, which it keeps: it lacks fonts that were installed after it was made.
    have: dict[_Face, set[str]] = {}
    ranks: dict[_Face, tuple[bool | int | str, ...]] = {}
    region = _region(letters)
    for path in sorted(font_manager.findSystemFonts()):
        for face, font in _opened(path):
            if own := _letters_in(font, missing):
                have[face], ranks[face] = own, _rank(face, font.style_name, region)
    while have:
        best = min(have, key=lambda face: (-len(have[face]), ranks[face]))
        found.update(dict.fromkeys(have[best], best))
        missing -= have[best]
        have = {face: own & missing for face, own in have.items() if own & missing}
    return found


def _rank(face: _Face, style: str, region: str) -> tuple[bool | int | str, ...]:
    """Returns what is smaller for a font to be preferred among those with equally many of the letters."""
    words = face.family.split()
    return (
        style not in ("Regular", "Book", "Normal"),
        "Mono" in words,
        "Serif" in words,
        region not in words,
        len(face.family),
        *face,
    )


def _region(letters: set[str]) -> str:
    """Returns whose shapes of Han characters to take, as fonts for all of them name them."""
    scripts = {unicodedata.name(letter, "").partition(" ")[0] for letter in letters}
    return "JP" if scripts & {"HIRAGANA", "KATAKANA"} else "KR" if "HANGUL" in scripts else "SC"


def _default_path() -> str:
    import matplotlib

    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def _opened(path: str) -> Iterator[tuple[_Face, "FT2Font"]]:
    """Yields the fonts in a file, none if it cannot be read; one at a time, or hundreds of files would be open."""
    from matplotlib.ft2font import FT2Font

    index, num_faces = 0, 1
    while index < num_faces:
        try:
            font = FT2Font(path, face_index=index)
        except (OSError, RuntimeError):
            return
        if "lastresort" not in path.lower():  # macOS's has a box for every letter
            yield _Face(path, index, font.family_name), font
        index, num_faces = index + 1, font.num_faces


def _letters_in(font: "FT2Font", letters: set[str]) -> set[str]:
    """Returns the letters that a font has as outlines: coloured emoji, which are images, cannot be drawn."""
    from matplotlib.ft2font import LoadFlags

    found = set()
    for letter in letters if font.scalable else ():
        if glyph := font.get_char_index(ord(letter)):
            font.load_glyph(glyph, LoadFlags.NO_SCALE)
            if len(font.get_path()[0]):
                found.add(letter)
    return found


def _registered(face: _Face) -> str:
    """Returns the name under which matplotlib finds a font, of this file and weight and no other."""
    from matplotlib.font_manager import FontEntry, fontManager

    entry = FontEntry(face.path, face.place, face.family, "normal", "normal", 400, "normal", "scalable")
    if entry not in fontManager.ttflist:
        fontManager.ttflist.insert(0, entry)
    return face.family


def _set(text: str) -> "FT2Font":
    """Returns a font, with those that it falls back to, that has laid out a text as `drawable` gives it."""
    from matplotlib.font_manager import FontPath, get_font
    from matplotlib.ft2font import LoadFlags

    faces = {face: None for letter in text if (face := _faces.get(letter))}
    font = get_font([_default_path(), *(FontPath(face.path, face.place) for face in faces)])
    font.set_size(FONT_SIZE, 72)
    font.set_text(text, 0.0, flags=LoadFlags.FORCE_AUTOHINT)
    return font
