"""The largest batch size that trains in this memory."""

from lit_cnn.training.process import find_batch_size
from lit_cnn.training.setup import Setup
from lit_cnn.training.trainer import build_trainer


def largest_batch_size(setup: Setup) -> tuple[int, bool]:
    """Returns the largest batch size that trains in this memory, and whether that is the whole training set."""
    # Without the user's loggers: nothing is trained that stays.
    trainer = build_trainer(setup.model, setup.options, {**setup.trainer, "logger": None}, None).trainer
    return find_batch_size(trainer, setup.model, setup.data)
