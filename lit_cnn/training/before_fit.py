"""The look at the images before a run's first step."""

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import and_more
from lit_cnn.data.audit import Report, audit
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.findings import warn_of
from lit_cnn.data.splits import SPLIT_NAMES


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
    warn_of(report.findings, "there are more; lit-cnn check-data lists them")
    return report
