"""Distillation: one student learns what the networks of an ensemble predict together."""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F

from lit_cnn.core.errors import UsageError
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.linked import own_options
from lit_cnn.training.load import load_classifier
from lit_cnn.training.weights import checkpoint_file

OPTIONS = ("teachers", "temperature", "alpha")
"""What a student's training has besides the options of `LitClassifier`, which are all that its checkpoint has."""


def soft_loss(logits: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns T^2 times the divergence of a student's softened probabilities from its teacher's, mean over the batch.

    Hinton et al. 2015, "Distilling the knowledge in a neural network", section 2; the entropy of the teacher, which no
    student changes, is taken off the cross-entropy there, so that 0 is the least. T^2 keeps the gradients at the size
    of those of hard labels.

    Args:
        logits: `(N, num_classes)` float, the student's.
        teacher: `(N, num_classes)` float, probabilities at that temperature.
        temperature: T, above 0.
    """
    return temperature**2 * F.kl_div((logits / temperature).log_softmax(1), teacher, reduction="batchmean")


class Teachers:
    """Trained networks that predict and never change: frozen, in evaluation mode and float32.

    Args:
        networks: One or more.
    """

    def __init__(self, networks: Sequence[LitClassifier]) -> None:
        self.networks = [network.eval().requires_grad_(False) for network in networks]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Teachers":
        # An average of the student's weights begins as a copy of the student, and needs no teachers of its own.
        return self

    def probabilities(self, pixels: torch.Tensor, temperature: float) -> torch.Tensor:
        """Returns the mean over the networks of the softmax of logits / T: `(N, num_classes)` float32.

        Args:
            pixels: `(N, C, S, S)` float in [0, 1], which each network normalises in its own way.
            temperature: T, above 0; at 1 the prediction of the ensemble.
        """
        predicted = []
        with torch.no_grad(), torch.autocast(pixels.device.type, enabled=False):
            for network in self.networks:
                network.to(pixels.device)
                logits = network.net((pixels - network.mean) / network.std)
                predicted.append((logits.float() / temperature).softmax(1))
        return torch.stack(predicted).mean(0)


class Distillation(LitClassifier):
    """A classifier whose loss is in part what teachers predict for the very image that it sees, augmented and mixed.

    The loss is `alpha * soft_loss + (1 - alpha) * cross_entropy`, with the labels in the latter; side branches learn
    from the labels alone. The same view for both is what makes a teacher consistent (Beyer et al. 2022, "Knowledge
    distillation: a good teacher is patient and consistent", section 3.1). Its checkpoint is that of a `LitClassifier`.

    Args:
        teachers: Checkpoints: `runs:/RUN_ID` or files.
        temperature: T of `soft_loss`; 4 is common, 1 is none.
        alpha: Weight of what the teachers predict, in (0, 1]; the labels have the rest.
        **options: Of `LitClassifier`.

    Raises:
        UsageError: If a number is out of its range, a teacher is not there, was trained for other classes or takes
            other images, or the head is to be solved for on cached features, which teachers cannot look at.
    """

    why_no_features = "teachers look at images"

    def __init__(
        self, teachers: list[str] | None = None, temperature: float = 4.0, alpha: float = 0.9, **options: Any
    ) -> None:
        if not teachers:
            raise UsageError("teachers", None, "name the runs of one or more trained networks, or of an ensemble")
        if not 0 < temperature < float("inf"):
            raise UsageError("temperature", temperature, "give a number above 0, for example 4")
        if not 0 < alpha <= 1:
            raise UsageError("alpha", alpha, "give a number above 0 and at most 1, for example 0.9")
        super().__init__(**options)
        if self.solves_head:
            raise UsageError("head_solver", "lbfgs", "needs cached features, and teachers look at images", "give sgd")
        self.temperature, self.alpha = temperature, alpha
        found = {address: load_classifier(checkpoint_file(address)) for address in teachers}
        for address, (network, _) in found.items():
            self._refuse_other(address, network)
        # No submodules: what is trained, saved and counted is the student.
        self.teachers = Teachers([network for network, _ in found.values()])
        self._digests = {address: record["digests"] for address, (_, record) in found.items()}

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
        """Returns the weighted sum of what the teachers and the labels make of the student's logits."""
        teacher = self.teachers.probabilities(views * self.std + self.mean, self.temperature)
        soft = soft_loss(logits, teacher, self.temperature)
        if self.alpha == 1:
            return soft
        return self.alpha * soft + (1 - self.alpha) * super().loss(logits, targets, views)

    def for_other_data(self, data: ImageDataModule) -> Self:
        """Returns a student of the same teachers, built anew by the same arguments, for other images."""
        own: dict[str, Any] = {
            "teachers": list(self._digests),
            "temperature": self.temperature,
            "alpha": self.alpha,
            **own_options(self.hparams),
        }
        return type(self).for_data(data, **own)

    def check_split(self, data: ImageDataModule) -> None:
        """Refuses teachers that were trained on what is val or test here.

        Raises:
            UsageError: If so.
        """
        for address, digests in self._digests.items():
            for split, what in (("test", "test"), ("val", "validation")):
                if digests[split] != data.digests[split]:
                    raise UsageError(
                        "teachers",
                        address,
                        f"was trained with other {what} images",
                        "take one of the same split, or the options of the data that it was trained with "
                        "(`split_scheme=1` for one of 0.2)",
                    )

    def _refuse_other(self, address: str, network: LitClassifier) -> None:
        if network.class_names != self.class_names:
            raise UsageError("teachers", address, "was trained for other classes", "take one of the same")
        for name in ("image_size", "in_channels", "interpolation", "pixel_range", "background"):
            theirs, ours = network.hparams[name], self.hparams[name]
            if theirs != ours:
                reason = f"takes images of {name} {theirs}, the student {ours}"
                raise UsageError("teachers", address, reason, f"both see the same image: give `{name}={theirs}`")
