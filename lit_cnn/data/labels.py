"""Labels and groups as raw text: names that look alike, and words that mean that there is none."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from lit_cnn.core.words import and_more, counted
from lit_cnn.data.class_table import printable
from lit_cnn.data.findings import Finding
from lit_cnn.data.image_set import ImageSet

_NO_VALUE = frozenset({"nan", "-nan", "none", "null", "n/a", "#n/a", "#na", "<na>", "nat"})
"""What pandas, numpy, SQL and JSON write for a missing value, in small letters. `NA` counts too, but no `Na`."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?")


def with_looked_at_names(image_set: ImageSet, are_given: bool) -> ImageSet:
    """Returns the set with what is wrong with the names of its classes and groups among its findings.

    Images of a group whose name means none stand alone.

    Args:
        image_set: With names as its source has them.
        are_given: Whether the user has named the classes: then they are right.
    """
    findings = [] if are_given else [*_labels_that_mean_none(image_set), *similar_classes(image_set.class_names)]
    groups = image_set.groups
    if groups is not None and (none := mean_none(sorted(set(groups) - {""}))):
        counts = {name: groups.count(name) for name in none}
        name = max(counts, key=lambda name: counts[name])
        message = (
            f"is the group of {counted(counts[name], 'image')} and means none: each of them stands alone; if they "
            "belong together, call their group otherwise"
        )
        findings.append(Finding("group_means_none", "warning", message, tuple((name,) for name in none)))
        groups = ["" if group in counts else group for group in groups]
    return replace(image_set, groups=groups, findings=(*image_set.findings, *findings))


def mean_none(names: Sequence[str]) -> list[str]:
    """Returns the names that mean that there is no label or group.

    These are what programs write for a missing value: `nan`, `None`, `null`, `N/A` and the like, in whatever case, and
    `NA`; and -1 where all others are numbers from 0 on. Of -1 and 1 alone both are classes.

    Args:
        names: All of them, each once.
    """
    # No more than this: groups may be as many as images.
    found = [name for name in names if name.strip().lower() in _NO_VALUE or name.strip() == "NA"]
    rest = set(names).difference(found)
    numbers = {name: float(name) for name in rest if _NUMBER.fullmatch(name.strip())}
    others = set(numbers.values()) - {-1.0}
    if len(numbers) == len(rest) and others and others != {1.0} and min(others) >= 0:
        found += sorted(name for name, number in numbers.items() if number == -1.0)
    return found


def similar_classes(names: Sequence[str]) -> Iterator[Finding]:
    """Yields which names look as if they meant the same class: one finding for each way in which they differ."""
    alike = defaultdict(list)
    for name in names:
        alike[_same_number(name)].append(name)
    cases: dict[str, list[tuple[str, ...]]] = {}
    for group in alike.values():
        if len(group) > 1:
            how = next(how for how, same in _DIFFERENCES.items() if len({same(name) for name in group}) == 1)
            cases.setdefault(how, []).append(tuple(map(_visible, group)))
    for how, found in cases.items():
        message = f"are classes whose names differ only in {how}; if they are one, give them one name"
        yield Finding("similar_classes", "warning", message, tuple(found))


def _labels_that_mean_none(image_set: ImageSet) -> Iterator[Finding]:
    names = image_set.class_names
    counts = dict(zip(names, np.bincount(image_set.labels, minlength=len(names)).tolist(), strict=True))
    if none := [name for name in mean_none(names) if counts[name]]:
        message = (
            f"{counted(counts[none[0]], 'image')} of the class {printable(none[0])}, which means no label"
            f"{and_more(len(none))}; give them one, take them away, or if it is a class, name all in `class_names`"
        )
        yield Finding("label_means_none", "error", message, tuple((name,) for name in none))


def _composed(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def _shown_only(name: str) -> str:
    """Without control and format characters, zero-width spaces among them, and without variation selectors."""

    def shows(letter: str) -> bool:
        is_hidden = unicodedata.category(letter) in ("Cc", "Cf") or "\ufe00" <= letter <= "\ufe0f"
        return letter.isspace() or not is_hidden

    return _composed("".join(filter(shows, _composed(name))))


def _same_blanks(name: str) -> str:
    return " ".join(_shown_only(name).split())


def _same_case(name: str) -> str:
    return _composed(_same_blanks(name).casefold())


def _same_separators(name: str) -> str:
    return re.sub(r"(?<=[^\W_])[ _-]+(?=[^\W_])", " ", _same_case(name)).strip(" _")


def _same_number(name: str) -> str:
    text = _same_separators(name)
    return f"{float(text):.17g}" if _NUMBER.fullmatch(text) else text


_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "how letters are encoded (NFC, NFD)": _composed,
    "characters that do not show": _shown_only,
    "blanks": _same_blanks,
    "upper and lower case": _same_case,
    "blanks, hyphens and underscores": _same_separators,
    "how a number is written": _same_number,
}
"""In what names may differ -> what makes those alike that differ in this, or in one before it, alone."""


def _visible(name: str) -> str:
    """Returns a name so that it can be told from another that looks the same: escapes and quotes where needed."""
    is_composed = unicodedata.normalize("NFC", name) == name
    shown = printable(name) if is_composed else ascii(name)[1:-1]
    return shown if shown == " ".join(shown.split()) else f"'{shown}'"
