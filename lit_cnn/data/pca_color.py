"""AlexNet's colour augmentation, as a transform of albumentations.

Imported by its class path, `lit_cnn.data.pca_color.PCAColor`, where a configuration asks for it: albumentations takes
seconds.
"""

from typing import Any, Literal

import numpy as np
from albumentations.core.transforms_interface import BaseTransformInitSchema, ImageOnlyTransform
from pydantic import Field

Eigenvalues = Literal["sqrt", "raw"]


def color_offset(covariance: np.ndarray, draws: np.ndarray, eigenvalues: Eigenvalues = "sqrt") -> np.ndarray:
    """Returns what is added to every pixel of an image: the principal components of colour, times what was drawn.

    Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks", section 4.1, add
    `[p1, p2, p3][a1 l1, a2 l2, a3 l3]`, where p and l are eigenvectors and eigenvalues of the RGB covariance. On pixels
    in [0, 1], l is the variance along p, about 0.2 at most, and the offset about 0.005: a step of one in 255, which
    nobody sees. The code in common use takes the standard deviation sqrt(l) instead, and so does `sqrt`; `raw` is the
    paper's formula to the letter.

    Args:
        covariance: `(3, 3)` RGB covariance of pixels in [0, 1].
        draws: `(3,)` one number a for each component, of the largest variance first.
        eigenvalues: `sqrt` multiplies the draws by the square roots of the eigenvalues, `raw` by the eigenvalues.

    Returns:
        `(3,)` offset of red, green and blue, for pixels in [0, 1].
    """
    values, vectors = np.linalg.eigh(np.asarray(covariance, dtype=np.float64))
    values, vectors = values[::-1].clip(min=0), vectors[:, ::-1]
    # An eigenvector's sign is left open; fixed here, or the same draw would differ between libraries of linear algebra.
    vectors = vectors * np.where(vectors.sum(0) < 0, -1.0, 1.0)
    return vectors @ (draws * (np.sqrt(values) if eigenvalues == "sqrt" else values))


class PCAColor(ImageOnlyTransform):
    """Shifts all pixels of an image along the principal components of the training set's colours; see `color_offset`.

    albumentations' own FancyPCA takes the components of the one image instead.

    Args:
        std: Standard deviation of the draws, one for each component and image; the paper's is 0.1.
        eigenvalues: As in `color_offset`.
        covariance: `(3, 3)` RGB covariance of pixels in [0, 1]; by default that of the training images, which the data
            module measures and sets before training.
        p: Probability with which an image is shifted.
    """

    class InitSchema(BaseTransformInitSchema):
        """What albumentations checks the arguments by."""

        std: float = Field(ge=0)
        eigenvalues: Eigenvalues
        covariance: list[list[float]] | None

    def __init__(
        self,
        std: float = 0.1,
        eigenvalues: Eigenvalues = "sqrt",
        covariance: list[list[float]] | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(p=p)
        self.std = std
        self.eigenvalues: Eigenvalues = eigenvalues
        self.covariance = covariance

    def get_params(self) -> dict[str, Any]:
        """Draws one number for each component."""
        return {"draws": self.random_generator.normal(0.0, self.std, 3)}

    def apply(self, img: np.ndarray, draws: np.ndarray, **params: Any) -> np.ndarray:
        """Returns the shifted `(H, W, 3)` uint8 image, rounded and kept within 0 and 255."""
        if self.covariance is None:
            raise RuntimeError("PCAColor: no covariance yet; the data module sets it before training")
        offset = color_offset(np.array(self.covariance), draws, self.eigenvalues)
        return np.rint(img + 255 * offset).clip(0, 255).astype(np.uint8)
