"""What one run is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.ranks import Ranks
from lit_cnn.training.record import run_name
from lit_cnn.training.resume import config_digest
from lit_cnn.training.run_options import RunOptions


@dataclass(frozen=True)
class Setup:
    """What a run is made of.

    Attributes:
        model: What is trained.
        data: On what.
        options: Of the run.
        trainer: Options of Lightning's Trainer, complete (see `trainer_options`).
        config: All of that as plain values, as the run records it.
        ranks: The processes of the run, if they have met to build it; else they do in its Trainer.
        why_weights: Why it starts from its weights, or from none, where that was left to the program.
    """

    model: LitClassifier
    data: ImageDataModule
    options: RunOptions
    trainer: Mapping[str, Any]
    config: dict[str, Any]
    ranks: Ranks | None = None
    why_weights: str = ""

    @cached_property
    def digest(self) -> str:
        """What decides the weights; see `config_digest`."""
        return config_digest(self.config, self.data.digests["data"])

    def with_data_options(self, options: Mapping[str, Any]) -> "Setup":
        """Returns the setup with other options of the data; data and model are built anew."""
        if not options:
            return self
        data = ImageDataModule(**{**self.data.options, "weights_expect": self.data.weights_expect, **options})
        config = {**self.config, "data": {**self.config["data"], **options}}
        return replace(self, model=self.model.for_other_data(data), data=data, config=config)

    @property
    def name(self) -> str:
        """The run's name."""
        return run_name(self.model, self.data, self.options.recipe)

    @property
    def fold_in_words(self) -> str:
        """Which fold is val, to follow other words: `, fold 2 of 5`; "" without folds."""
        options = self.data.options
        return "" if options["fold"] is None else f", fold {options['fold']} of {options['num_folds']}"

    @property
    def experiment(self) -> str:
        """The name of the run's experiment."""
        return self.options.experiment or self.data.image_set.name

    def new_logger(self) -> JournalLogger | None:
        """Returns what a run of this setup logs with, not yet begun; None where nothing is tracked."""
        if not self.options.track:
            return None
        waits = self.options.on_full_disk == "continue"
        return JournalLogger(self.experiment, tracking_uri=self.options.tracking_uri, buffer_when_disk_full=waits)
