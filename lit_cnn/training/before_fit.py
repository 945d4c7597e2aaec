"""The look at the images before a run's first step."""

import sys

import numpy as np

from lit_cnn.core.errors import UsageError, in_python, spelt
from lit_cnn.core.words import and_more, counted
from lit_cnn.data.audit import Report, audit
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.splits import SPLIT_NAMES

_MOST_WARNINGS = 5  # lines before a run


def check_before_fit(datamodule: ImageDataModule) -> Report | None:
    """Looks through the images as `--data.check` says; warnings go to the error output.

    Raises:
        UsageError: If there are images that cannot be trained on.
    """
    if datamodule.check == "off":
        return None
    splits: dict[str, np.ndarray] = {split: datamodule.splits[split] for split in SPLIT_NAMES}
    report = audit(datamodule.image_set, splits, datamodule.check)
    if errors := report.of("error"):
        count = sum(len(finding.cases) for finding in errors)
        reason = f"{errors[0].cases[0][0]} {errors[0].message}{and_more(count)}"
        remedy = "lit-cnn check-data lists them, `on_bad_image=skip` leaves such files out"
        raise UsageError("root", None, reason, remedy)
    warnings = report.of("warning")
    for finding in warnings[:_MOST_WARNINGS]:
        first, message = " and ".join(finding.cases[0][:2]), spelt(finding.message, in_python)
        times = counted(len(finding.cases), "time")
        print(f"lit-cnn: warning: {finding.kind}, {times}: {first} {message}", file=sys.stderr)
    if len(warnings) > _MOST_WARNINGS:
        print("lit-cnn: warning: there are more; lit-cnn check-data lists them", file=sys.stderr)
    return report
