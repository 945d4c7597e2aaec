"""`Finding`: something that is wrong, or odd, with a set of images; found while it is read or looked through."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_cnn.core.errors import as_printed
from lit_cnn.core.file_names import as_text, in_sentence
from lit_cnn.core.words import counted

Severity = Literal["error", "warning", "note"]
ABSENT = ("missing_file", "no_image")
"""The kinds of findings about images that are not there."""
_MOST_WARNINGS = 5  # lines


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


def warn_of(findings: Sequence[Finding], more: str = "") -> None:
    """Prints the warnings among findings to the error output, a line each.

    Args:
        findings: Of any severity.
        more: What is said where there are too many to print.
    """
    warnings = [finding for finding in findings if finding.severity == "warning"]
    for finding in warnings[:_MOST_WARNINGS]:
        first = " and ".join(finding.cases[0][:2])
        what = as_printed(finding.message)
        print(
            f"lit-cnn: warning: {finding.kind}, {counted(len(finding.cases), 'time')}: {first} {what}", file=sys.stderr
        )
    if len(warnings) > _MOST_WARNINGS and more:
        print(f"lit-cnn: warning: {more}", file=sys.stderr)
