"""Text in pictures: letters of any script where a font has them, words or numbers where none has, no formula."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from lit_cnn.core import fonts
from lit_cnn.core.fonts import class_labels, draw_text, drawable, note_on_labels, set_fonts, text_width, without_middle
from lit_cnn.data.audit import audit
from lit_cnn.data.contact_sheet import captioned_images, contact_sheet
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.preview import preview
from lit_cnn.data.sources import load_image_set
from lit_cnn.evaluation.arms import plot_by_images
from lit_cnn.reports.figures import new_figure, save_png, shortened, svg_of
from tests.runs import image_folder

# What DejaVu Sans, which comes with matplotlib, has; and what it has not.
KNOWN = ["Кошка", "γάτα", "חתול", "قطة", "Ünïcode", "$x_1$", "$\\frac{$", "_name", "back\\slash", 'a"b<c>']
OTHERS = ["猫", "ねこ", "고양이", "แมว", "बिल्ली", "🐈", "ক বাংলা"]


@pytest.fixture(autouse=True)
def nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """No font is known yet, and this machine has none."""
    monkeypatch.setattr(fonts, "_faces", {})
    fonts._fits.cache_clear()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])


def make_font(file: Path, letters: str, family: str, side: int = 800) -> Path:
    """A font whose letters are squares with this side of 1000; 0: letters without outlines, as of coloured emoji."""
    glyphs = {".notdef": TTGlyphPen(None).glyph()}
    for letter in letters:
        pen = TTGlyphPen(None)
        if side:
            pen.moveTo((0, 0))
            for corner in ((0, side), (side, side), (side, 0)):
                pen.lineTo(corner)
            pen.closePath()
        glyphs[f"u{ord(letter):X}"] = pen.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder(list(glyphs))
    font.setupCharacterMap({ord(letter): f"u{ord(letter):X}" for letter in letters})
    font.setupGlyf(glyphs)
    font.setupHorizontalMetrics(dict.fromkeys(glyphs, (1000, 0)))
    font.setupHorizontalHeader(ascent=900, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(file)
    return file


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs a font with all letters of OTHERS, and others that are to be passed over."""
    letters = "".join(sorted(set("".join(OTHERS) + "น้ำ") - {" "}))
    files = [
        make_font(tmp_path / "blank.ttf", letters + "㊙", "Blank", side=0),
        make_font(tmp_path / "one.ttf", "猫", "One", side=100),
        make_font(tmp_path / "serif.ttf", letters, "Squares Serif", side=100),
        make_font(tmp_path / "squares.ttf", letters, "Squares Sans One"),
        tmp_path / "broken.ttf",
        tmp_path / "gone.ttf",
    ]
    files[-2].write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(map(str, files)))


def ink(text: str) -> np.ndarray:
    """`(40, 400)` bool, where a line of text has ink."""
    picture = Image.new("RGB", (400, 40), "white")
    draw_text(picture, 20, 20, text)
    dark: np.ndarray = np.asarray(picture)[..., 0] < 128
    return dark


def drawn(text: str) -> np.ndarray:
    """`(H, W)` bool, the same, cut to the text."""
    dark = ink(text)
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    cut: np.ndarray = dark[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return cut


def test_no_font_is_looked_for_where_none_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(font_manager, "findSystemFonts", pytest.fail)
    assert drawable(KNOWN) == KNOWN == class_labels(KNOWN) and note_on_labels(KNOWN, KNOWN) == ""
    code = "import sys, lit_cnn.core.fonts as f; f.class_labels(['cat', 'dog']); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_letters_come_from_the_fonts_that_have_them(squares: None) -> None:
    assert class_labels(OTHERS) == OTHERS and note_on_labels(OTHERS, OTHERS) == ""
    assert {face.family for face in fonts._faces.values() if face} == {"Squares Sans One"}
    assert drawable(["a猫", "㊙"]) == ["a猫", "\\u3299"], "blank letters are none"
    square = drawn("猫")
    assert square.all() and 7 <= square.shape[0] <= 10 and drawn("猫猫").shape[1] == square.shape[1] + 11
    assert text_width("a猫") == pytest.approx(text_width("a") + text_width("猫"), abs=1)


def test_letters_that_no_font_has_together_are_spelt(squares: None) -> None:
    # The vowel ำ is drawn as two, and the font has one of them.
    assert drawable(["น้ำ_1", "e\u0e49", "น"]) == ["\\u0e19\\u0e49\\u0e33_1", "e\\u0e49", "น"]


def test_without_a_font_classes_are_numbered_and_other_text_is_spelt(squares: None) -> None:
    names = ["dog", "㊙", "cat ㊙", "㊙㊙", "a\nb", "a\tb"]
    assert class_labels(names) == ["dog", "class 1", "cat \\u3299", "class 3", "a\\nb", "a\\tb"]
    note = note_on_labels(names, class_labels(names))
    assert note.startswith("class N: label N, counted from 0; no font here has the letters of its name")
    assert class_labels(["㊙", "class 0"]) == ["class 0", "class 1"]
    assert drawable(["㊙_1.png", "\udcff", "a\u202eb", "e\u0301", "\u1112\u1161\u11ab", "a\u3000\xa0b"]) == [
        "\\u3299_1.png",
        "\\udcff",
        "a\\u202eb",
        "é",
        "\\ud55c",  # not 한, which no font here has
        "a  b",
    ]


def test_long_names_keep_what_tells_them_apart() -> None:
    names = ["x" * 300 + end for end in "ab"]
    assert class_labels(names) == ["x" * 11 + "…" + "x" * 11 + end for end in "ab"]
    middle = ["x" * 30 + letter + "x" * 30 for letter in "ab"]
    assert class_labels([*middle, "cat"]) == ["class 0", "class 1", "cat"]
    assert note_on_labels(middle, class_labels(middle)) == "class N: label N, counted from 0"
    assert without_middle("abcde\u0301fgh", 7) == "abc…fgh"
    assert without_middle("x" * 48, 48) == "x" * 48
    assert captioned_images([np.zeros((9, 9, 1), np.uint8)], [["x" * 5000]]).shape[1] == 968


def test_letters_stand_on_one_line() -> None:
    alone = ink("x")
    for text in ("xg", "xg\u0302", "x(قطة)"):
        np.testing.assert_array_equal(ink(text)[:, :26], alone[:, :26])
    assert alone[:, :26].any() and not alone[:, 27:].any() and abs(np.flatnonzero(alone.any(axis=1)).mean() - 20) < 2


def test_arabic_is_joined_and_hebrew_runs_from_right_to_left() -> None:
    assert text_width("ققق") < 0.9 * 3 * text_width("ق")
    both, last = drawn("אל"), drawn("ל")
    np.testing.assert_array_equal(both[:, : last.shape[1]], last)


def test_a_figure_takes_text_literally_and_warns_of_nothing(squares: None, tmp_path: Path) -> None:
    names = [*KNOWN, *OTHERS, "㊙", "new\nline", "x" * 200]

    def figure() -> Figure:
        figure, axes = new_figure(7, 7)
        for name in names:
            axes.plot([0, 1], [0, 1], label=shortened(name))
        axes.legend()
        axes.set_title("$\\wrong{$ 猫 ㊙")
        axes.set_xticks(range(2), ["$\\wrong{$", "猫"])
        return figure

    found = figure()
    save_png(found, tmp_path / "a.png")
    legend = found.axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text().removeprefix("\u200e") for text in legend.get_texts()]
    assert texts == [*KNOWN, *OTHERS, "\\u3299", "new line", "x" * 23 + "…" + "x" * 24]
    svg = svg_of(figure(), "a")
    assert "㊙" in svg and "$\\frac{$" in svg and str(tmp_path) not in svg  # browsers have fonts of their own
    plot_by_images({name: {50: [0.1, 0.2], 500: [0.3, 0.4]} for name in names[-6:]}, tmp_path / "b.png", "猫 ㊙ $")
    for file in ("a.png", "b.png"):
        assert np.asarray(Image.open(tmp_path / file)).std() > 10


@pytest.mark.parametrize("has_fonts", [True, False])
def test_pictures_of_images_show_names_or_numbers(
    has_fonts: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if has_fonts:
        request.getfixturevalue("squares")
    names = ["$cat$", "猫", "🐈"]
    pictures = []
    for folder, classes in (("odd", names), ("plain", ["$cat$", "class 1", "class 2"])):
        root = image_folder(tmp_path / folder, classes, per_class=8, size=32)
        data = ImageDataModule("image_folder", str(root))
        picture = preview(data, num_images=3, num_draws=1)
        shutil.copyfile(root / classes[0] / "00.png", root / classes[2] / "00.png")
        sheet = contact_sheet(audit(load_image_set("image_folder", root), {}, "full"))
        pictures.append((picture, sheet))
    (odd, odd_sheet), (plain, plain_sheet) = pictures
    assert len(odd) == len(plain) or not has_fonts
    assert odd_sheet is not None and plain_sheet is not None
    if has_fonts:
        assert odd_sheet.shape == plain_sheet.shape and (odd_sheet != plain_sheet).any()
    else:  # what stands for the names, and a line that says so
        for found, expected in ((odd, plain), (odd_sheet, plain_sheet)):
            np.testing.assert_array_equal(found[: len(expected)], expected)
            assert len(found) > len(expected) and (found[len(expected) :] < 128).any()


DEBIAN = {
    "猫": "Noto Sans CJK SC",
    "ねこ": "Noto Sans CJK JP",
    "고양이": "Noto Sans CJK KR",
    "แมวน้ำ": "Noto Sans Thai",
    "बिल्ली": "Noto Sans Devanagari",
    "বাংলা": "Noto Sans Bengali",
    "മലയാളം": "Noto Sans Malayalam",
}


@pytest.mark.debian
@pytest.mark.parametrize(("name", "family"), DEBIAN.items())
def test_the_fonts_of_debian(name: str, family: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = Path("/usr/share/fonts")
    if missing := [kind for kind in ("opentype", "truetype") if not any((folder / kind / "noto").glob("NotoSans*"))]:
        pytest.skip(f"Debian's fonts-noto-cjk and fonts-noto-core are not installed: no {missing} of them")
    files = [str(file) for file in (folder / "opentype" / "noto").iterdir()]
    files += [str(file) for file in (folder / "truetype" / "noto").iterdir()]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    assert class_labels([name]) == [name]
    assert {face.family for face in fonts._faces.values() if face} == {family}
    figure, axes = new_figure(3, 3)
    axes.set_title(name)
    set_fonts(figure)
    assert axes.title.get_fontfamily()[-1] == family
    save_png(figure, tmp_path / "a.png")
    assert drawn(name).any()
