"""`LitCLI`: Lightning's command line, which turns arguments into the setup of a run."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml
from jsonargparse.typing import register_type
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from lit_cnn.cli.auto_weights import settle
from lit_cnn.cli.parser import OneLineParser, arranged
from lit_cnn.core.errors import UsageError
from lit_cnn.core.file_names import all_as_text
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.linked import LINKED_FROM_DATA
from lit_cnn.tracking.run import run_in
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.ranks import Ranks
from lit_cnn.training.record import recorded_config
from lit_cnn.training.resume import checkpoint_file, checkpoint_to_train_on
from lit_cnn.training.run_options import TRAINER_DEFAULTS, RunOptions, trainer_options
from lit_cnn.training.setup import Setup
from lit_cnn.training.trainer import meet
from lit_cnn.training.weights import expected_images, use_store

# What callbacks have as defaults (Timer's interval, a device), and jsonargparse cannot write into a configuration.
register_type(torch.device)
yaml.SafeDumper.add_multi_representer(str, lambda dumper, text: dumper.represent_str(str.__str__(text)))

_OPTIONS = tuple(field.name for field in dataclasses.fields(RunOptions))


class LitCLI(LightningCLI):
    """Parses the options of `lit-cnn fit`, and builds model and data by them.

    Args:
        command: `fit`, `validate` or `test`.
        arguments: What follows it on the command line.
        model_class: What is trained or evaluated.

    Attributes:
        options: Of the run.
        plain_config: The resolved configuration as plain values, links left out.
        setup: What the run is made of.
        finds_batch_size: Whether only the largest batch size is asked for.
    """

    setup: Setup
    _trains = True

    def __init__(
        self, command: str, arguments: Sequence[str], model_class: type[LitClassifier] = LitClassifier
    ) -> None:
        self._command = command
        arguments, self._why_weights = settled(arguments)
        super().__init__(
            model_class,
            ImageDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_kwargs={"prog": f"lit-cnn {command}"},
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=arranged(arguments),
            run=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data must agree on, and adds the options of a run."""
        for name in LINKED_FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        for section in ("data", "model"):
            parser.link_arguments("seed_everything", f"{section}.seed")
        parser.add_class_arguments(RunOptions, as_group=False)
        parser.add_argument(
            "--find_batch_size", type=bool, default=False, help="only say the largest --data.batch_size that fits"
        )
        # Taken out of the arguments before they are parsed (take_seeds): the parser only has to tell of it.
        if self._command == "fit":
            parser.epilog = (
                "--seeds N [N ...]: train once with each, under one run with mean and standard deviation; "
                "--folds K [--split_seeds N ...]: train on each of K folds, cut anew with each of these seeds; "
                "--engine ray [--address HOST:PORT]: on the machines of a Ray cluster, --trainer.devices of them in all"
            )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given arguments only; Lightning would warn that this process has others."""
        self.config = parser.parse_args(args)

    def before_instantiate_classes(self) -> None:
        """Refuses what can be told to be wrong before anything is read, and settles what others depend on."""
        config = self.config
        self.options = RunOptions(**{name: config[name] for name in _OPTIONS})
        self.finds_batch_size = config.find_batch_size
        trains = self._trains and self._command == "fit" and not self.finds_batch_size
        self._ranks = meet(config.trainer.as_dict()) if trains else Ranks()
        with self._ranks.ending_together():
            self._settle()

    def _settle(self) -> None:
        config = self.config
        self.options.check(writes=self._command == "fit" and self._ranks.is_first)
        if len(set(self._ranks.from_each(config.model.weights))) > 1:
            raise UsageError("weights", None, "each host would start from others", "give pretrained, offline or a file")
        config.trainer.precision = trainer_options(config.trainer.as_dict())["precision"]
        if config.ckpt_path is not None and config.ckpt_path != "last":
            given, find = config.ckpt_path, checkpoint_to_train_on if self._command == "fit" else checkpoint_file
            config.ckpt_path = self._ranks.from_first(lambda: str(find(given, self.options.store)))
            self.options = dataclasses.replace(self.options, ckpt_path=config.ckpt_path)
        if config.model.weights is not None:
            run = run_in(config.model.weights)
            config.model.weights = config.model.weights if run is None else f"runs:/{run}"
            with use_store(self.options.store, self._ranks.file_of_first):
                expected = expected_images(config.model.arch, config.model.weights)
            # In the configuration too, which the checkpoint keeps.
            config.data.weights_expect = expected
        text = self.parser.dump(config, skip_none=False, format="yaml")
        self.plain_config: dict[str, Any] = all_as_text(yaml.safe_load(text))
        self.plain_config.pop("config", None)

    def instantiate_classes(self) -> None:
        """Builds data and model; the runs whose weights are asked for are those of this store."""
        with self._ranks.ending_together(), use_store(self.options.store, self._ranks.file_of_first):
            built = self.parser.instantiate_classes(self.config)
        config = recorded_config(self.plain_config)
        ranks = self._ranks if self._ranks.are_several else None
        self.setup = Setup(built.model, built.data, self.options, dict(built.trainer), config, ranks, self._why_weights)


class DataCLI(LitCLI):
    """Parses what `lit-cnn fit` would, and builds the data module only.

    Args:
        arguments: Options of `lit-cnn fit`.
    """

    _trains = False

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__("fit", [*arguments, "--track=false"])

    def instantiate_classes(self) -> None:
        """Builds the data module; nothing is read yet."""
        self.datamodule = ImageDataModule(**self.plain_config["data"], seed=self.plain_config["seed_everything"])


def settled(
    arguments: Sequence[str],
    config_of: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
) -> tuple[list[str], str]:
    """Returns arguments of `lit-cnn fit` with weights that can be had here in the place of `auto`, and why these.

    Args:
        arguments: With the folder spelt out.
        config_of: From a run's configuration to that of the run that `--resume auto` means, its parent's say.

    Raises:
        UsageError: If there are none, and the regime needs some.
    """
    return settle(arguments, DataCLI, config_of)
