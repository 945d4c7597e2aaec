"""`Finding`: something that is wrong, or odd, with a set of images; found while it is read or looked through."""

from dataclasses import dataclass
from typing import Any, Literal

from lit_cnn.core.file_names import as_text, in_sentence

Severity = Literal["error", "warning", "note"]
ABSENT = ("missing_file", "no_image")
"""The kinds of findings about images that are not there."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, or odd, with a set of images.

    Attributes:
        kind: A word for it, such as `truncated` or `label_conflict`.
        severity: `error` cannot be trained on; `warning` makes figures wrong or training worse; `note` is good to know.
        message: What it is, and the way out where there is one.
        cases: What it is about: for each case the paths of its images, of a folder, or the name of a class; two or more
            where images are compared.
    """

    kind: str
    severity: Severity
    message: str
    cases: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", in_sentence(self.message))
        object.__setattr__(self, "cases", tuple(tuple(map(as_text, case)) for case in self.cases))

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON: kind, severity, message, count, cases."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "count": len(self.cases),
            "cases": [list(case) for case in self.cases],
        }
