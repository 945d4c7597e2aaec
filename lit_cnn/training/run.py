"""One tracked run, from data and model to its end."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import yaml

from lit_cnn.core.errors import UsageError
from lit_cnn.data.audit import Report
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.data.sampling import check_shared_out
from lit_cnn.tracking.logger import JournalLogger
from lit_cnn.tracking.run import Run
from lit_cnn.training.before_fit import check_before_fit
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.callbacks.averaging import check_average_of
from lit_cnn.training.callbacks.snapshots import check_same_cycles
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.distillation import Distillation
from lit_cnn.training.ending import Ending, Tested, conclude, evaluate_best, keep_outputs
from lit_cnn.training.launchers import leave_it_to_first
from lit_cnn.training.linked import check_data_of, made_by
from lit_cnn.training.optimization import check_same_optimizer, path_of_penalties
from lit_cnn.training.parents import ParentRun
from lit_cnn.training.process import (
    RunFailedError,
    failures_in_words,
    quiet_lightning,
    require_room,
    signals_stop,
)
from lit_cnn.training.ranks import Ranks, join
from lit_cnn.training.record import (
    check_classes,
    check_randomness,
    flatten,
    images_in_full,
    interval_tags,
    log_check,
    log_inputs,
    log_preview,
    resolved,
    run_tags,
)
from lit_cnn.training.rehearsal import check_monitors, rehearse
from lit_cnn.training.resume import checkpoint_file, mark_finished, mark_unfinished
from lit_cnn.training.setup import Setup
from lit_cnn.training.start import Start, check_not_beyond, find_start
from lit_cnn.training.steps import (
    check_callbacks,
    check_has_end,
    check_limits,
    check_whole_folds,
    limited,
    several_devices,
    total_steps,
)
from lit_cnn.training.trainer import RunTrainer, build_trainer, evaluation_trainer
from lit_cnn.training.training_on import (
    TrainOn,
    batches_of,
    check_same_network,
    how_continued,
    splits_before,
    warn_of_seen,
)


def train(
    setup: Setup,
    parent: ParentRun | None = None,
    label: str = "",
    before: Callable[[Setup], None] = lambda setup: None,
) -> Run:
    """Trains one run to its end, from its first step or from where an earlier one stands, and tests its best epoch.

    Args:
        setup: What it is made of.
        parent: The run under which it is shown.
        label: What the parent calls it. One that the parent has already is not trained again.
        before: Called with the setup when nothing refuses it, before the run is opened.

    Returns:
        The run. In all but the first process of a distributed run, its metrics alone.

    Raises:
        UsageError: If it cannot be trained so; nothing is written then.
        RunFailedError: If a disk or the memory was full; the run is FAILED.
        RunInterrupted: If a signal stopped it; the run is KILLED, and can be resumed.
    """
    logger = setup.new_logger()
    if logger is not None:
        logger.is_sent_by_parent = parent is not None and parent.sends_children(setup.options.store.journal_dir)
    with (setup.ranks or Ranks()).ending_together():
        parts = build_trainer(setup.model, setup.options, setup.trainer, logger)
    ranks = setup.ranks or join(parts.trainer)
    try:
        run = _train(setup, parts, ranks, parent, label, before)
    except BaseException as error:
        ranks.close(error)
        if isinstance(error, UsageError) and not ranks.is_first:
            leave_it_to_first()
        raise
    ranks.close()
    return run


def _train(
    setup: Setup,
    parts: RunTrainer,
    ranks: Ranks,
    parent: ParentRun | None,
    label: str,
    before: Callable[[Setup], None],
) -> Run:
    try:
        with ranks.ending_together():
            _check_same_images(ranks, setup.data)
            setup, start = find_start(setup, parent, ranks)
            if start.path is not None and start.folder is None:
                parts.trainer.callbacks.append(TrainOn(batches_of(start.checkpoint)))  # type: ignore[attr-defined]
            _check(setup, parts, start, has_parent=parent is not None)
            report = check_before_fit(setup.data) if ranks.is_first else None
            if parent is None or label not in parent.children:  # else it is trained
                with failures_in_words(setup.data.batch_size), quiet_lightning():
                    uses_features = parts.feature_cache.used != "off"
                    rehearse(parts.trainer, setup.model, setup.data, uses_features, is_new=start.path is None)
            parent_key = None
            if parts.logger is not None and ranks.is_first:
                _require_room(setup, parts, start)
                parent_key = open_parent(parent, setup) if parent is not None else None
            if parent is not None and label in parent.children:
                return parent.children[label]
            if ranks.is_first:
                before(setup)
            ranks.meet()
            if parts.logger is not None:
                tags = parent.child_tags if parent is not None else {}
                parts.checkpoints.folder = ranks.from_first(
                    lambda: _begin(setup, parts, start, report, parent_key, tags)
                )
    except BaseException as error:
        if parts.logger is not None and parts.logger.is_open:  # between its opening and its first step
            _end_early(parts.logger, error)
        raise

    def end(error: BaseException) -> None:
        """Records an end that the thread which trains cannot record, as it waits for another process."""
        if parts.logger is not None and ranks.is_first:
            _end_early(parts.logger, error)

    if ranks.lifeline is not None:
        ranks.lifeline.at_end = lambda line: end(RunFailedError(line))
    stop = signals_stop(parts.trainer, parts.checkpoints, lambda number: end(RunInterrupted(number)))
    with stop, quiet_lightning(), failures_in_words(setup.data.batch_size, ranks.gone):
        metrics, ending = _train_and_test(setup, parts, start, ranks)
    return _finished(setup, parts, metrics, ending)


def train_children(
    parent: ParentRun,
    setups: Iterable[tuple[str, Callable[[], Setup]]],
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> Run:
    """Trains runs one after the other under a parent, and returns the parent with the runs as its children.

    Args:
        parent: Not yet opened.
        setups: Label and setup of each child; made when its turn has come.
        after_each: Called with each child that has ended.
        before_each: Called with the setup of each child that is about to begin.

    Raises:
        UsageError: As `train`, and so do the others.
    """
    status = "FAILED"
    try:
        train_each(parent, setups, after_each, before_each)
        status = "FINISHED"
    except (RunInterrupted, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        ended = parent.end(status)
    return ended


def train_each(
    parent: ParentRun,
    setups: Iterable[tuple[str, Callable[[], Setup]]],
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> None:
    """Trains runs one after the other under a parent, which stays open; see `train_children`."""
    for label, make in setups:
        began = time.monotonic()
        run = train(make(), parent, label, before_each)
        if run is not parent.children.get(label):  # else it was trained before the parent was resumed
            run = replace(run, seconds=time.monotonic() - began)
        parent.add(label, run)
        after_each(run)


def evaluate(setup: Setup, stage: Literal["validate", "test"]) -> dict[str, float]:
    """Returns the metrics of a checkpoint, `options.ckpt_path`, on the images of val or of test; nothing is tracked.

    Raises:
        UsageError: If there is no such checkpoint, or it is of other classes.
    """
    given = setup.options.ckpt_path
    if given is None or given == "last":
        raise UsageError("ckpt_path", None, f"lit-cnn {stage} needs a run's id, or a checkpoint's file")
    path = checkpoint_file(given, setup.options.store)
    checkpoint = load_checkpoint(path)
    check_classes(checkpoint, setup.data, path)
    check_same_network(checkpoint, setup.model, path)
    trainer = evaluation_trainer(setup.trainer)
    with quiet_lightning():
        run = trainer.validate if stage == "validate" else trainer.test
        (metrics,) = run(setup.model, setup.data, ckpt_path=str(path), weights_only=True, verbose=False)
    return dict(metrics)


def _check_same_images(ranks: Ranks, data: ImageDataModule) -> None:
    """Refuses hosts that have other images than the first one."""
    digest = data.digests["data"] if ranks.are_several else ""
    if len(set(ranks.from_each(digest))) > 1:
        reason = "the hosts of this run have different images there"
        raise UsageError("root", data.options["root"], reason, "copy the same folder to all of them")


def _check(setup: Setup, parts: RunTrainer, start: Start, has_parent: bool) -> None:
    """Refuses, before anything is written, what would fail or mean nothing later."""
    model, data, options = setup.model, setup.data, setup.options
    check_data_of(model.hparams, model.class_names, data)
    check_shared_out(data.batch_size, parts.trainer.world_size)
    num_batches = 1 if model.solves_head else data.num_train_batches
    check_limits(parts.trainer, data, num_batches, tests=options.test_after_fit)
    if has_parent and data.splits.folds:
        check_whole_folds(parts.trainer)
    if data.sampler == "balanced" and model.hparams["class_weights"] == "balanced":
        raise UsageError("class_weights", "balanced", "`sampler=balanced` evens out the classes", "take one")
    if parts.trainer.world_size > 1 and has_parent:
        raise several_devices(setup.data)
    if parts.trainer.world_size > 1 and options.on_full_disk == "continue":
        raise UsageError("on_full_disk", "continue", "one device a run; several cannot wait for each other's disk")
    if start.path is not None:
        check_classes(start.checkpoint, data, start.path)
        check_randomness(start.checkpoint)
        check_same_optimizer(start.checkpoint["hyper_parameters"], model.hparams)
        check_same_cycles(start.checkpoint, parts.cycle_epochs)
        check_average_of(start.checkpoint, options.ema_decay, options.swa_start)
        check_same_network(start.checkpoint, model, start.path)
        check_not_beyond(start, parts.trainer, num_batches)
    check_has_end(parts.trainer)
    if isinstance(model, Distillation):
        model.check_split(data)
    model.build_optimizer()  # only to see now, before anything is written, that it can be built
    parts.feature_cache.plan(parts.trainer, model, data)
    check_callbacks(parts.trainer)
    check_monitors(parts.trainer, model)


def _require_room(setup: Setup, parts: RunTrainer, start: Start) -> None:
    snapshots = setup.model.hparams["cycles"] or 0
    if start.path is not None:
        snapshots -= len(list(start.path.parent.glob("snapshot_*.ckpt")))
    folder = setup.options.store.journal_dir
    require_room(folder, setup.model, averages=parts.average is not None, snapshots=snapshots)


def open_parent(parent: ParentRun, setup: Setup) -> str:
    """Opens the run above others once, or goes on with the unfinished one; returns its key.

    Args:
        parent: That run.
        setup: Of one of the others.
    """
    if parent.key is not None:
        return parent.key
    logger = parent.logger or setup.new_logger()
    assert logger is not None
    config, digest = parent.config_of(setup.config), parent.digest_of(setup.config, setup.data.digests["data"])
    params, name = flatten(config), parent.name_of(setup.name)
    of_all = {key: value for key, value in resolved(params, setup.model).items() if key != "seed_everything"}
    label = parent.label_of(of_all)
    tags = {**run_tags(setup.model, setup.data, digest, params), "kind": parent.kind, "label": label, **parent.tags}
    return parent.open(logger, digest, name, setup.data.digests, params=params, tags=tags)


def _begin(
    setup: Setup,
    parts: RunTrainer,
    start: Start,
    report: Report | None,
    parent_key: str | None,
    more_tags: Mapping[str, str],
) -> Path:
    """Opens the run in the journal, and returns its folder: the same on resume, if it is here and the same work."""
    logger, store = parts.logger, setup.options.store
    assert logger is not None
    params = {**flatten(setup.config), "feature_cache": parts.feature_cache.used}
    tags = {**run_tags(setup.model, setup.data, setup.digest, params), **more_tags}
    before = splits_before(start.checkpoint, is_same_run=start.folder is not None)
    if start.path is None:
        before = list(setup.model.weights_trained_on)
        tags |= warn_of_seen(before, setup.data, store.splits_dir, "the run whose weights it starts from")
    if start.path is not None and start.folder is None:
        tags["continued_from"] = start.id_in(store)
        params["continued"] = how_continued(start.checkpoint, params)
        tags |= warn_of_seen(before, setup.data, store.splits_dir, "the run that it goes on from")
    logger.begin(run_name=setup.name, params=params, tags=tags, parent_key=parent_key, resume_folder=start.folder)
    mark_unfinished(logger.run_folder, setup.digest, setup.name, setup.data.digests)
    config_text = yaml.safe_dump(setup.config, sort_keys=False)
    of_run = {"key": logger.key, "config": config_text, "config_digest": setup.digest, "digests": setup.data.digests}
    of_run["splits_before"] = before
    of_run["continued_from"] = start.record.get("key" if start.folder is None else "continued_from")
    of_run["num_batches"] = limited(setup.data.num_train_batches, parts.trainer.limit_train_batches)
    setup.model.run_record = {**made_by(setup.data.class_names), **of_run}
    if start.folder is not None and start.path is not None:
        logger.log_text(config_text, "config.yaml")  # it may train for longer
    else:
        log_inputs(logger, setup.model, setup.data, config_text, store.splits_dir)
        log_check(logger, setup.data, report)
        if setup.options.log_preview:
            log_preview(logger, setup.data)
    if setup.model.weights_note:
        print(setup.model.weights_note, file=sys.stderr)
    verb = "resuming" if start.folder else "training"
    on = f", going on from run {tags['continued_from']} {params['continued']}" if "continued" in params else ""
    # Without an id: MLflow's is not known yet, and a run is to be known by one.
    print(f"{verb} {setup.name} (seed {setup.config['seed_everything']}{setup.fold_in_words}){on}", file=sys.stderr)
    return logger.run_folder


def _train_and_test(setup: Setup, parts: RunTrainer, start: Start, ranks: Ranks) -> tuple[dict[str, float], Ending]:
    """Returns the best epoch's metrics and the test's, and what they come to; ends the run, whatever happens."""
    trainer, model, data, tested = parts.trainer, setup.model, setup.data, Tested({}, None)
    logger = parts.logger if trainer.is_global_zero else None
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start.path, weights_only=True)
        best = parts.checkpoints.best
        metrics = {f"best/{name}": value for name, value in best.items()}
        if logger and model.solves_head and best:
            logger.log_params({"best_l2": path_of_penalties(total_steps(trainer))[int(best["epoch"])]})
        if logger and parts.checkpoints.best_path is None:
            what = "it has no best epoch, and compare and ensemble leave it out"
            print(f"lit-cnn: warning: the run ended before its first validation: {what}", file=sys.stderr)
        elif setup.options.test_after_fit and parts.checkpoints.best_path is not None:
            tested = evaluate_best(setup, parts, ranks)
            metrics |= tested.metrics
        keep_outputs(setup, parts, tested.logits)
        ending = conclude(setup, parts, metrics, tested.predictions) if trainer.is_global_zero else Ending()
        if logger:
            for checkpoint in sorted(logger.run_folder.glob("*.ckpt")):
                logger.log_artifact(checkpoint, "checkpoints")
            logger.set_tags(interval_tags(metrics, images_in_full(trainer, data)))
            logger.end("FINISHED")
            mark_finished(logger.run_folder)
        return metrics, ending
    except BaseException as error:
        ranks.let_end()
        if logger:
            _end_early(logger, error)
        raise


def _end_early(logger: JournalLogger, error: BaseException) -> None:
    status = "KILLED" if isinstance(error, RunInterrupted | KeyboardInterrupt) else "FAILED"
    if lost := logger.end_without_room(status):
        error.add_note(f"not stored: {lost}")
    if not logger.is_sent_by_parent:
        # Seconds that let the store show how the run ended; the journal has it in any case.
        logger.wait_until_sent(timeout=5)


def _finished(setup: Setup, parts: RunTrainer, metrics: dict[str, float], ending: Ending) -> Run:
    logger = parts.logger if parts.trainer.is_global_zero else None
    if logger is None:
        return Run("", setup.name, metrics, summary=ending.summary)
    is_sent = not logger.is_sent_by_parent and logger.wait_until_sent(timeout=60)
    run = Run(logger.run_id or logger.key, setup.name, metrics, parts.checkpoints.best_path, is_sent=is_sent)
    return replace(run, summary=ending.summary, report=ending.report)
