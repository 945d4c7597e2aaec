"""`LitCLI`: Lightning's command line around one tracked run."""

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lit_cnn.cli.options import add_run_options
from lit_cnn.cli.parser import OneLineParser, default_config
from lit_cnn.core.errors import UsageError
from lit_cnn.core.precision import default_precision
from lit_cnn.data.audit import Report
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.tracking import check_writable, resolve_store
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.training.before_fit import check_before_fit
from lit_cnn.training.callbacks import RunAverage, RunCheckpoints, RunInterrupted, default_callbacks
from lit_cnn.training.callbacks.averaging import check_average, check_average_of
from lit_cnn.training.callbacks.snapshots import check_same_cycles
from lit_cnn.training.checkpoints import CheckpointIO256, load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import Distillation
from lit_cnn.training.feature_cache import FeatureCache
from lit_cnn.training.linked import LINKED_FROM_DATA
from lit_cnn.training.optimization import (
    check_has_end,
    check_same_optimizer,
    epochs_of_cycle,
    path_of_penalties,
    total_steps,
)
from lit_cnn.training.process import (
    failures_in_words,
    find_batch_size,
    is_first_process,
    quiet_lightning,
    require_room,
    signals_stop,
)
from lit_cnn.training.record import (
    check_classes,
    check_randomness,
    flatten,
    log_check,
    log_inputs,
    log_preview,
    run_name,
    run_record,
    run_tags,
)
from lit_cnn.training.resume import checkpoint_file, config_digest, last_checkpoint, mark_finished, mark_unfinished
from lit_cnn.training.seeds import SeedsRun
from lit_cnn.training.weights import expected_images, use_store

MONITORS = ("val/acc", "val/acc5", "val/balanced_acc", "val/f1", "val/loss")
# How the first process of a distributed run tells the others.
_RESUME_FROM, _RUN_FOLDER = "LIT_CNN_RESUME_FROM", "LIT_CNN_RUN_FOLDER"


class LitCLI(LightningCLI):
    """Lightning's CLI for one subcommand, with lit_cnn's links, callbacks and tracking.

    Args:
        subcommand: `fit`, `validate` or `test`.
        arguments: What follows it on the command line.
        parent: The run that holds the runs of several seeds, if this is one of them.
        model_class: What is trained or evaluated.
    """

    def __init__(
        self,
        subcommand: str,
        arguments: Sequence[str],
        parent: SeedsRun | None = None,
        model_class: type[LitClassifier] = LitClassifier,
    ) -> None:
        self._only = subcommand
        self._parent = parent
        self.result: dict[str, float] = {}
        super().__init__(
            model_class,
            ImageDataModule,
            save_config_callback=None,
            seed_everything_default=0,
            parser_class=OneLineParser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=[subcommand, "--config", str(default_config()), *arguments],
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Returns the one subcommand that is asked for: building the parsers of all takes seconds."""
        return {self._only: LightningCLI.subcommands()[self._only] | {"weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links what model and data must agree on, and adds lit_cnn's own options."""
        for name in LINKED_FROM_DATA:
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")
        for section in ("data", "model"):
            parser.link_arguments("seed_everything", f"{section}.seed")
        add_run_options(parser, self._only)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses the given arguments only; Lightning would warn that this process has others."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Leaves the command line in charge: Lightning would overwrite it with the checkpoint's parameters."""

    def before_instantiate_classes(self) -> None:
        """Refuses an unusable store and a missing checkpoint before anything is read or built."""
        self._options = self.config[self._only]
        self._store = resolve_store(self._options.tracking_uri)
        if self._options.monitor not in MONITORS:
            raise UsageError(f"--monitor {self._options.monitor}: choose one of {', '.join(MONITORS)}")
        if self._options.data.sampler == "balanced" and self._options.model.class_weights == "balanced":
            raise UsageError("--model.class_weights balanced: --data.sampler balanced evens out the classes; take one")
        if self._options.trainer.precision is None:
            # Written into the configuration, so that the run records what it computed in.
            self._options.trainer.precision = default_precision(self._options.trainer.accelerator)
        if self._only == "fit" and self._options.track:
            check_writable(self._store)
        ckpt_path = self._options.ckpt_path
        if ckpt_path is not None and ckpt_path != "last":
            self._options.ckpt_path = str(checkpoint_file(ckpt_path, self._store))
        if self._options.model.weights is not None:
            with use_store(self._store):
                expected = expected_images(self._options.model.arch, self._options.model.weights)
            # In the configuration too, which the checkpoint keeps.
            self._options.data.weights_expect = expected

    def instantiate_classes(self) -> None:
        """Builds data and model; the runs whose weights are asked for are those of this store."""
        with use_store(self._store):
            super().instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the callbacks that every run has."""
        options, is_fit = self._options, self._only == "fit"
        callbacks = default_callbacks(
            monitor=options.monitor,
            monitor_mode=options.monitor_mode,
            checkpoint_seconds=options.checkpoint_seconds,
            on_full_disk=options.on_full_disk,
            ema_decay=options.ema_decay if is_fit else None,
            swa_start=options.swa_start if is_fit else None,
            progress_bar=options.trainer.enable_progress_bar is not False,
            tracked=True,
        )
        self.checkpoints = next(each for each in callbacks if isinstance(each, RunCheckpoints))
        self.feature_cache = next(each for each in callbacks if isinstance(each, FeatureCache))
        self._average = next((each for each in callbacks if isinstance(each, RunAverage)), None)
        self._cycle_epochs = epochs_of_cycle(options.model, options.trainer) if is_fit else None
        check_average(self._average, options.model, options.trainer)
        config = dict(self._get(self.config_init, "trainer"))
        config["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        config["plugins"] = [*(config.get("plugins") or []), CheckpointIO256()]
        config["use_distributed_sampler"] = False
        logger = self._logger() if self._only == "fit" and options.track else False
        try:
            return Trainer(**{**config, "logger": logger, **kwargs})
        except (ValueError, TypeError, MisconfigurationException) as error:
            raise UsageError(f"--trainer: {error}") from error

    def _logger(self) -> JournalLogger:
        experiment = self._options.experiment or self.datamodule.image_set.name
        waits = self._options.on_full_disk == "continue"
        return JournalLogger(experiment, tracking_uri=self._options.tracking_uri, waits_for_room=waits)

    def fit(self, model: LitClassifier, datamodule: ImageDataModule, **kwargs: Any) -> None:
        """Trains one tracked run from its first step, or from the checkpoint where an earlier one stands."""
        digest = config_digest(self.plain_config, datamodule.digests["data"])
        if self._parent is not None and self.trainer.world_size > 1:
            raise UsageError("--seeds: one device a run; for several devices give --seed_everything, seed by seed")
        if self._options.on_full_disk == "continue" and self.trainer.world_size > 1:
            raise UsageError("--on_full_disk continue: one device a run; several cannot wait for each other's disk")
        ckpt_path = self._resumed_checkpoint(digest)
        resumed = load_checkpoint(ckpt_path) if ckpt_path else None
        if resumed is not None:
            check_classes(resumed, datamodule, ckpt_path)
            check_randomness(resumed)
            check_same_optimizer(resumed["hyper_parameters"], model.hparams)
            check_same_cycles(resumed, self._cycle_epochs)
            check_average_of(resumed, self._options.ema_decay, self._options.swa_start)
        check_has_end(self.trainer)
        if isinstance(model, Distillation):
            model.check_split(datamodule)
        if self._options.find_batch_size:
            find_batch_size(self.trainer, model, datamodule)
            return
        model.build_optimizer()  # only to see now, before anything is written, that it can be built
        self.feature_cache.plan(self.trainer, model, datamodule)
        report = check_before_fit(datamodule) if is_first_process() else None
        logger = self.trainer.logger
        if isinstance(logger, JournalLogger):
            snapshots = self._options.model.cycles or 0
            if ckpt_path is not None:
                snapshots -= len(list(ckpt_path.parent.glob("snapshot_*.ckpt")))
            require_room(self._store.journal_dir, model, averages=self._average is not None, snapshots=snapshots)
            parent_key = self._open_parent(model, datamodule) if self._parent is not None else None
            if self._parent is not None and self._options.seed_everything in self._parent.results:
                self.result = self._parent.results[self._options.seed_everything]
                return
            self._begin(logger, model, datamodule, report, digest, resumed, ckpt_path, parent_key)
        with signals_stop(self.trainer, self.checkpoints), quiet_lightning(), failures_in_words(datamodule.batch_size):
            self._fit_to_the_end(model, datamodule, ckpt_path)

    def test(self, model: LitClassifier, datamodule: ImageDataModule, **kwargs: Any) -> None:
        """Evaluates a checkpoint on the test images."""
        self._evaluate(self.trainer.test, model, datamodule)

    def validate(self, model: LitClassifier, datamodule: ImageDataModule, **kwargs: Any) -> None:
        """Evaluates a checkpoint on the validation images."""
        self._evaluate(self.trainer.validate, model, datamodule)

    @functools.cached_property
    def plain_config(self) -> dict[str, Any]:
        """The resolved configuration as plain values, links left out."""
        text = self._parser(self._only).dump(self._options, skip_none=False, format="yaml")
        plain: dict[str, Any] = yaml.safe_load(text)
        plain.pop("config", None)
        return plain

    def _evaluate(self, evaluate: Any, model: LitClassifier, datamodule: ImageDataModule) -> None:
        ckpt_path = self._options.ckpt_path
        if ckpt_path is None or ckpt_path == "last":
            raise UsageError(f"--ckpt_path: lit-cnn {self._only} needs a checkpoint's file or runs:/RUN_ID")
        check_classes(load_checkpoint(Path(ckpt_path)), datamodule, ckpt_path)
        with quiet_lightning():
            (self.result,) = evaluate(model, datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        for name, value in self.result.items():
            print(f"{name}  {value:.4f}")

    def _resumed_checkpoint(self, digest: str) -> Path | None:
        if not is_first_process():
            return Path(os.environ[_RESUME_FROM]) if os.environ.get(_RESUME_FROM) else None
        path = self._choose_checkpoint(digest)
        # Lightning starts the other processes of a run later, by which time this one holds the run.
        os.environ[_RESUME_FROM] = str(path or "")
        return path

    def _choose_checkpoint(self, digest: str) -> Path | None:
        ckpt_path, resume = self._options.ckpt_path, self._options.resume
        if ckpt_path == "last":
            return last_checkpoint(self._store, digest, required=True)
        if ckpt_path is None and resume == "auto":
            return last_checkpoint(self._store, digest, required=False)
        return Path(ckpt_path) if ckpt_path else None

    def _begin(
        self,
        logger: JournalLogger,
        model: LitClassifier,
        datamodule: ImageDataModule,
        report: Report | None,
        digest: str,
        resumed: dict[str, Any] | None,
        ckpt_path: Path | None,
        parent_key: str | None,
    ) -> None:
        """Opens the run in the journal: the same run on resume, if its folder is here and it is the same work."""
        if not is_first_process():
            self.checkpoints.folder = Path(os.environ[_RUN_FOLDER])
            return
        tags, name = run_tags(model, datamodule, digest), run_name(model, datamodule, self._options.recipe)
        record = (resumed or {}).get("lit_cnn", {})
        same = ckpt_path is not None and record.get("config_digest") == digest
        folder = self._store.journal_dir / record.get("key", "-") if same else None
        if ckpt_path is not None and not same:
            tags["resumed_from"] = str(record.get("run_id") or record.get("key") or ckpt_path)
        logger.begin(
            run_name=name,
            params={**flatten(self.plain_config), "feature_cache": self.feature_cache.used},
            tags=tags,
            parent_key=parent_key,
            resume_folder=folder if folder is not None and folder.is_dir() else None,
        )
        mark_unfinished(logger.run_folder, digest, name)
        self.checkpoints.folder = logger.run_folder
        os.environ[_RUN_FOLDER] = str(logger.run_folder)
        config_text = yaml.safe_dump(self.plain_config, sort_keys=False)
        model.run_record = run_record(datamodule, config_text, digest, logger.key)
        if folder is None or not folder.is_dir():
            log_inputs(logger, model, datamodule, config_text, self._store.splits_dir)
            log_check(logger, datamodule, report)
            if self._options.log_preview:
                log_preview(logger, datamodule)
        verb = "resuming" if ckpt_path else "training"
        if model.weights_note:
            print(model.weights_note, file=sys.stderr)
        print(f"{verb} {name} (seed {self._options.seed_everything}), run {logger.key}", file=sys.stderr)

    def _open_parent(self, model: LitClassifier, datamodule: ImageDataModule) -> str:
        assert self._parent is not None
        seeds = list(self._parent.seeds)
        config = {**self.plain_config, "seed_everything": seeds}
        digest = config_digest(config, datamodule.digests["data"])
        tags = {**run_tags(model, datamodule, digest), "kind": "seeds", "seed": " ".join(map(str, seeds))}
        name = run_name(model, datamodule, self._options.recipe)
        begin = {
            "run_name": f"{name} ({len(seeds)} seeds)",
            "params": flatten(config),
            "tags": tags,
        }
        return self._parent.open(self._logger(), digest, begin)

    def _fit_to_the_end(self, model: LitClassifier, datamodule: ImageDataModule, ckpt_path: Path | None) -> None:
        logger = self.trainer.logger if self.trainer.is_global_zero else None
        if not isinstance(logger, JournalLogger):
            logger = None
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
            self.result = {f"best/{name}": value for name, value in self.checkpoints.best.items()}
            if logger and model.solves_head and self.checkpoints.best:
                penalties = path_of_penalties(total_steps(self.trainer))
                logger.log_params({"best_l2": penalties[int(self.checkpoints.best["epoch"])]})
            if self._options.test_after_fit and self.checkpoints.best_path is not None:
                self._test_best(model, datamodule)
            if logger:
                self._finish(logger)
        except BaseException as error:
            if logger:
                status = "KILLED" if isinstance(error, RunInterrupted | KeyboardInterrupt) else "FAILED"
                _end_early(logger, status, error)
            raise

    def _test_best(self, model: LitClassifier, datamodule: ImageDataModule) -> None:
        best_path = self.checkpoints.best_path
        assert best_path is not None
        step = self.trainer.global_step - 1
        model.load_state_dict(load_checkpoint(best_path)["state_dict"])
        logger = self.trainer.logger
        # The test's own logging would give it a step of its own; the run's last step is meant.
        self.trainer._loggers = []
        (metrics,) = self.trainer.test(model, datamodule, verbose=False)
        self.trainer._loggers = [logger] if logger is not None else []
        for each in self.trainer.loggers:
            each.log_metrics(dict(metrics), step=step)
        self.result.update(metrics)

    def _finish(self, logger: JournalLogger) -> None:
        for checkpoint in sorted(logger.run_folder.glob("*.ckpt")):
            logger.log_artifact(checkpoint, "checkpoints")
        logger.end("FINISHED")
        mark_finished(logger.run_folder)


class DataCLI(LitCLI):
    """Parses what `lit-cnn fit` would, and builds the data module only.

    Args:
        arguments: Options of `lit-cnn fit`.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        super().__init__("fit", [*arguments, "--track=false"])

    def instantiate_classes(self) -> None:
        """Builds the data module; nothing is read yet."""
        self.datamodule = ImageDataModule(**self.plain_config["data"], seed=self._options.seed_everything)

    def _run_subcommand(self, subcommand: str) -> None:
        """Does nothing."""


def _end_early(logger: JournalLogger, status: str, error: BaseException) -> None:
    if lost := logger.end_without_room(status):
        error.add_note(f"not stored: {lost}")
    # Seconds that let the store show how the run ended; the journal has it in any case.
    logger.wait_until_sent(timeout=5)
