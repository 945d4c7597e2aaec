"""Images with what is to be said of them, as one picture: the worst of what `audit` found; mistakes."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lit_cnn.core.errors import UsageError
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.audit import Report
from lit_cnn.data.decoding import pixel_limit
from lit_cnn.data.sources import MAX_PIXELS, Finding, ImageSet, limit_pixels

_CELL, _GAP, _LINE = 112, 8, 15  # pixels; the last is the height of a line of text
_IN_A_ROW = 8
_COLORS = {"error": "#b00020", "warning": "#a05a00", "note": "#404040"}


def contact_sheet(report: Report, num_rows: int = 12) -> np.ndarray | None:
    """Draws a row for each finding that can be seen: what it is, and the first of its images.

    Images that are compared stand side by side on one ground. A case of which no image can be decoded is left out; what
    is larger than `max_pixels`, but not than its default, can.

    Args:
        report: What was found, and in which images.
        num_rows: The most rows, the worst findings first.

    Returns:
        `(H, W, 3)` uint8, or None if there is nothing to see.
    """
    image_set = report.image_set
    place = {path: index for index, path in enumerate(image_set.paths)}
    with _lifted_limit():
        rows = (_row(image_set, place, finding) for finding in report.findings)
        drawn = list(itertools.islice((row for row in rows if row is not None), num_rows))
    return np.concatenate(drawn) if drawn else None


def captioned_images(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]]) -> np.ndarray:
    """Draws images in rows of eight, each with lines of text below it.

    Args:
        images: `(H, W, C)` uint8 each, C 1 or 3; at least one. A square from the middle is shown.
        captions: As many lines for each; what is too wide loses its beginning.

    Returns:
        `(H, W, 3)` uint8.
    """
    height = _CELL + _LINE * len(captions[0]) + 2 * _GAP
    num_rows = -(-len(images) // _IN_A_ROW)
    sheet = Image.new("RGB", (_GAP + _IN_A_ROW * (_CELL + _GAP), _GAP + num_rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, _IN_A_ROW)
        left, top = _GAP + column * (_CELL + _GAP), _GAP + row * height
        sheet.paste(Image.fromarray(_as_rgb(resize_and_center_crop(image, _CELL))), (left, top))
        pen.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), outline="#c0c0c0")
        for number, text in enumerate(lines):
            pen.text((left, top + _CELL + number * _LINE), _fitted(text, font), fill="black", font=font)
    return np.asarray(sheet)


def _row(image_set: ImageSet, place: dict[str, int], finding: Finding) -> np.ndarray | None:
    """Draws the first cases of a finding; None if there is nothing to see of them."""
    width = _GAP + _IN_A_ROW * (_CELL + _GAP)
    row = Image.new("RGB", (width, 2 * _GAP + 3 * _LINE + _CELL), "white")
    pen, font = ImageDraw.Draw(row), ImageFont.load_default(12)
    title = f"{finding.severity}: {finding.kind} ({len(finding.cases)})"
    pen.text((_GAP, _GAP // 2), title, fill=_COLORS[finding.severity], font=font)
    top, column = _GAP + _LINE, 0
    to_see = (case for case in finding.cases if any(path in place for path in case))
    for case in itertools.islice(to_see, _IN_A_ROW):  # not more: where none can be decoded, all would be tried
        shown = [path for path in case if path in place][: _IN_A_ROW - column]
        views = [_view(image_set, place[path]) for path in shown]
        if all(view is None for view in views):
            continue
        left = _GAP + column * (_CELL + _GAP)
        if len(case) > 1:
            right = left + len(shown) * (_CELL + _GAP)
            ground = (left - _GAP // 2, top - 3, right - _GAP // 2 - 2, top + _CELL + 2 * _LINE + 2)
            pen.rectangle(ground, fill="#e8eef7")
        for path, view in zip(shown, views, strict=True):
            if view is not None:
                row.paste(Image.fromarray(view), (left, top))
            pen.rectangle((left, top, left + _CELL - 1, top + _CELL - 1), outline="#c0c0c0")
            name = image_set.class_names[image_set.labels[place[path]]]
            for line, text in enumerate((name, path.rpartition("/")[2])):
                pen.text((left, top + _CELL + line * _LINE), _fitted(text, font), fill="black", font=font)
            left += _CELL + _GAP
            column += 1
        if column == _IN_A_ROW:
            break
    return np.asarray(row) if column else None


def _view(image_set: ImageSet, index: int) -> np.ndarray | None:
    try:
        return _as_rgb(resize_and_center_crop(image_set.images[index], _CELL))
    except UsageError:
        return None


@contextlib.contextmanager
def _lifted_limit() -> Iterator[None]:
    limit = pixel_limit()
    limit_pixels(max(limit, MAX_PIXELS))
    try:
        yield
    finally:
        limit_pixels(limit)


def _as_rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Returns a text as wide as a cell at most; its end is what tells files apart."""
    # A file's name may hold a line break, which has no width.
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    whole = text
    while text and font.getlength(text if text == whole else f"…{text}") > _CELL:
        text = text[1:]
    return text if text == whole else f"…{text}"
