"""The digits inside scikit-learn: images that are there without any file of one's own."""

import numpy as np

from lit_cnn.data.image_set import ImageSet, from_arrays


def load_digits() -> ImageSet:
    """Returns the 1,797 handwritten digits inside scikit-learn: 8x8 px, gray, ten classes, no prescribed split."""
    from sklearn.datasets import load_digits as sklearn_digits

    digits = sklearn_digits()
    array = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    return from_arrays("digits", "sklearn.datasets.load_digits", array, digits.target, tuple("0123456789"), {})
