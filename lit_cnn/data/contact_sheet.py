"""Images with what is to be said of them, as one picture: the worst of what `audit` found; mistakes."""

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw

from lit_cnn.core.errors import UsageError
from lit_cnn.core.fonts import LINE_HEIGHT, class_labels, draw_text, drawable, note_on_labels, text_width
from lit_cnn.core.resize import resize_and_center_crop
from lit_cnn.data.audit import Report
from lit_cnn.data.decoding import pixel_limit
from lit_cnn.data.sources import MAX_PIXELS, Finding, ImageSet, limit_pixels

CELL, _GAP = 112, 8  # pixels
_IN_A_ROW = 8
_WIDTH = _GAP + _IN_A_ROW * (CELL + _GAP)
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
    labels = class_labels(image_set.class_names)
    with _lifted_limit():
        rows = (_row(image_set, place, finding, labels) for finding in report.findings)
        drawn = list(itertools.islice((row for row in rows if row is not None), num_rows))
    if drawn and (note := note_on_labels(image_set.class_names, labels)):
        drawn.append(line_of_text(note))
    return np.concatenate(drawn) if drawn else None


def captioned_images(images: Sequence[np.ndarray], captions: Sequence[Sequence[str]], note: str = "") -> np.ndarray:
    """Draws images in rows of eight, each with lines of text below it.

    Args:
        images: `(H, W, C)` uint8 each, C 1 or 3; at least one. A square from the middle is shown.
        captions: As many lines for each; what is too wide loses its beginning.
        note: A line below all.

    Returns:
        `(H, W, 3)` uint8.
    """
    height = CELL + LINE_HEIGHT * len(captions[0]) + 2 * _GAP
    num_rows = -(-len(images) // _IN_A_ROW)
    sheet = Image.new("RGB", (_WIDTH, _GAP + num_rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    drawable(text for lines in captions for text in lines)  # finds fonts for all of them at once
    for place, (image, lines) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(place, _IN_A_ROW)
        left, top = _GAP + column * (CELL + _GAP), _GAP + row * height
        sheet.paste(Image.fromarray(_as_rgb(resize_and_center_crop(image, CELL))), (left, top))
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="#c0c0c0")
        for number, text in enumerate(lines):
            draw_text(sheet, left, top + CELL + number * LINE_HEIGHT + LINE_HEIGHT // 2, _fitted(text))
    return np.concatenate([np.asarray(sheet), line_of_text(note)]) if note else np.asarray(sheet)


def line_of_text(text: str) -> np.ndarray:
    """Returns a line of text as wide as the sheets, `(H, W, 3)` uint8."""
    line = Image.new("RGB", (_WIDTH, LINE_HEIGHT + _GAP), "white")
    draw_text(line, _GAP, LINE_HEIGHT // 2, text)
    return np.asarray(line)


def _row(image_set: ImageSet, place: dict[str, int], finding: Finding, labels: Sequence[str]) -> np.ndarray | None:
    """Draws the first cases of a finding; None if there is nothing to see of them."""
    row = Image.new("RGB", (_WIDTH, 2 * _GAP + 3 * LINE_HEIGHT + CELL), "white")
    pen = ImageDraw.Draw(row)
    title = f"{finding.severity}: {finding.kind} ({len(finding.cases)})"
    draw_text(row, _GAP, (_GAP + LINE_HEIGHT) // 2, title, _COLORS[finding.severity])
    top, column = _GAP + LINE_HEIGHT, 0
    to_see = (case for case in finding.cases if any(path in place for path in case))
    for case in itertools.islice(to_see, _IN_A_ROW):  # not more: where none can be decoded, all would be tried
        shown = [path for path in case if path in place][: _IN_A_ROW - column]
        views = [_view(image_set, place[path]) for path in shown]
        if all(view is None for view in views):
            continue
        left = _GAP + column * (CELL + _GAP)
        if len(case) > 1:
            right = left + len(shown) * (CELL + _GAP)
            ground = (left - _GAP // 2, top - 3, right - _GAP // 2 - 2, top + CELL + 2 * LINE_HEIGHT + 2)
            pen.rectangle(ground, fill="#e8eef7")
        for path, view in zip(shown, views, strict=True):
            if view is not None:
                row.paste(Image.fromarray(view), (left, top))
            pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="#c0c0c0")
            name = labels[image_set.labels[place[path]]]
            for line, text in enumerate((name, path.rpartition("/")[2])):
                draw_text(row, left, top + CELL + line * LINE_HEIGHT + LINE_HEIGHT // 2, _fitted(text))
            left += CELL + _GAP
            column += 1
        if column == _IN_A_ROW:
            break
    return np.asarray(row) if column else None


def _view(image_set: ImageSet, index: int) -> np.ndarray | None:
    try:
        return _as_rgb(resize_and_center_crop(image_set.images[index], CELL))
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


def _fitted(text: str) -> str:
    """Returns a text as wide as a cell at most; its end is what tells files apart."""
    (whole,) = drawable([text])
    if text_width(whole) <= CELL:
        return whole
    starts = range(max(0, len(whole) - CELL), len(whole))  # no more than a letter a pixel
    start = bisect.bisect_left(starts, True, key=lambda start: text_width(f"…{whole[start:]}") <= CELL)
    return f"…{whole[len(whole) - len(starts) + start :]}"
