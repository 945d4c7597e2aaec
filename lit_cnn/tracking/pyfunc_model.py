"""What MLflow runs of an exported model: it loads this file from code, never a pickle (`mlflow models serve`).

A row of the input is the bytes of an image file, a row of the answer its class, that class's probability and those of
all classes by name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel

from lit_cnn.core.errors import UsageError
from lit_cnn.data.pixel_values import pixel_options
from lit_cnn.data.sources import decode_image
from lit_cnn.portable import load_graph


class ImageModel(PythonModel):
    """An export behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        """Loads the export; each of its files is checked against its SHA-256."""
        self.classifier = load_graph(Path(context.artifacts["export"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Classifies images.

        Args:
            context: MLflow's.
            model_input: One column, `image`: the bytes of an image file, which JSON carries in base64.
            params: None are known.

        Returns:
            The columns `class`, `probability` in [0, 1], and `probabilities`, class -> probability in label order.

        Raises:
            MlflowException: If an image cannot be decoded; a server answers 400.
        """
        try:
            options = pixel_options(self.classifier.pixel_range, self.classifier.background)
            images = [
                decode_image(content, self.classifier.in_channels, f"image {place}", options)
                for place, content in enumerate(model_input["image"])
            ]
        except UsageError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        probabilities = self.classifier.probabilities(np.stack([self.classifier.view(image) for image in images]))
        names = self.classifier.class_names
        return pd.DataFrame(
            {
                "class": [names[label] for label in probabilities.argmax(axis=1)],
                "probability": probabilities.max(axis=1).astype(float),
                "probabilities": [dict(zip(names, row, strict=True)) for row in probabilities.astype(float).tolist()],
            }
        )


set_model(ImageModel())
