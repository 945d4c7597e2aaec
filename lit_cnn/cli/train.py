"""`lit-cnn fit | validate | test`: one run, or one for each seed or fold, and the exit code."""

import atexit
import shutil
import signal
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from lit_cnn.cli.lit_cli import LitCLI, settled
from lit_cnn.cli.output import from_here, warn_not_sent
from lit_cnn.cli.spelling import spelling_of
from lit_cnn.cli.start_screen import start_summary
from lit_cnn.core.errors import UsageError, spelt
from lit_cnn.data.stored_options import completed
from lit_cnn.tracking import resolve_store
from lit_cnn.tracking.run import Run
from lit_cnn.training.batch_size import largest_batch_size
from lit_cnn.training.callbacks import RunInterrupted
from lit_cnn.training.checkpoints import load_checkpoint
from lit_cnn.training.classifier import LitClassifier
from lit_cnn.training.distillation import OPTIONS as DISTILLATION_OPTIONS
from lit_cnn.training.folds import Folds, train_folds
from lit_cnn.training.losses import NonFiniteLossError
from lit_cnn.training.parents import of_seeds
from lit_cnn.training.process import RunFailedError, hush_lightning, is_first_process, notes_of
from lit_cnn.training.resume import checkpoint_file, checkpoint_to_train_on
from lit_cnn.training.run import evaluate, train, train_children
from lit_cnn.training.setup import Setup

Command = Literal["fit", "validate", "test"]


def run_trainer_command(
    command: Command,
    arguments: list[str],
    seeds: list[int] | None = None,
    model_class: type[LitClassifier] = LitClassifier,
    starting: str = "",
    folds: int | None = None,
    split_seeds: list[int] | None = None,
) -> int:
    """Runs `fit`, `validate` or `test`.

    Args:
        command: Which.
        arguments: What follows it on the command line, without `--seeds`.
        seeds: Train once with each of these.
        model_class: What is trained.
        starting: The line that says what is about to start.
        folds: Train on each of so many folds.
        split_seeds: Cut them anew with each of these.

    Returns:
        The exit code.
    """
    hush_lightning()
    if folds is not None:
        cut = Folds(folds, _tuple(seeds), _tuple(split_seeds))
        return exit_code(lambda: _run_folds(cut, arguments, model_class, starting))
    if seeds is not None:
        return exit_code(lambda: _run_seeds(seeds, arguments, model_class, starting))
    if command != "fit" or not any(text.startswith("--config") for text in arguments):
        arguments = _with_config_of_checkpoint(command, arguments)
    return exit_code(lambda: _run_one(command, arguments, model_class, starting))


def _run_one(command: Command, arguments: list[str], model_class: type[LitClassifier], starting: str) -> None:
    cli = LitCLI(command, arguments, model_class)
    if command != "fit":
        metrics = evaluate(cli.setup, command)
        if is_first_process():
            print("\n".join(f"{name}  {value:.4f}" for name, value in metrics.items()))
    elif cli.finds_batch_size:
        size, is_whole = largest_batch_size(cli.setup)
        print(f"--data.batch_size {size}{'; the training set has no more images' if is_whole else ''}")
    else:
        print_run(train(cli.setup, before=_start_printer(starting)))


def _run_seeds(seeds: list[int], arguments: list[str], model_class: type[LitClassifier], starting: str) -> None:
    printer = _start_printer(starting)
    print_run(train_seeds(seeds, arguments, model_class, after_each=_print_child, before_each=printer))


def _run_folds(folds: Folds, arguments: list[str], model_class: type[LitClassifier], starting: str) -> None:
    printer = _start_printer(starting)
    labels = iter([fold.label for of_round in folds.rounds() for fold in of_round])

    def print_fold(run: Run) -> None:
        """Prints a line about a fold that has ended."""
        metrics = run.metrics
        right = [f"{100 * metrics['best/val/acc']:.1f} % of its images right"] if "best/val/acc" in metrics else []
        right += [f"test {100 * metrics['test/acc']:.1f} %"] if "test/acc" in metrics else []
        right += [f"run {run.id[:8]}"] if run.id else []
        print(f"{next(labels)}: {', '.join(right) or 'done'}")
        if run.id and not run.is_sent:
            warn_not_sent()

    print_run(fit_folds(folds, arguments, model_class, after_each=print_fold, before_each=printer))


def fit_folds(
    folds: Folds,
    arguments: Sequence[str],
    model_class: type[LitClassifier],
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> Run:
    """Trains one network a fold, under one run that it returns; see `train_folds`.

    Args:
        folds: Which.
        arguments: Options of `lit-cnn fit`, without `--folds`, `--seeds` and `--split_seeds`.
        model_class: What is trained.
        after_each: Called with each run that has ended.
        before_each: Called with the setup of each run that is about to begin.

    Raises:
        UsageError: If the options choose a fold or a checkpoint themselves, or as `train`.
    """
    _refuse(arguments, "folds", "ckpt_path", *(["seed_everything"] if folds.seeds is not None else []))
    if folds.split_seeds is not None:
        _refuse(arguments, "split_seeds", "data.fold_seed")
    # Once, so that all folds start from the same.
    arguments, why = settled(arguments, folds.config_of)

    def make(options: Mapping[str, Any], seed: int | None) -> Setup:
        own = [f"--data.{name}={value}" for name, value in options.items() if value is not None]
        return _setup_of(seed, [*arguments, *own], model_class, why)

    return train_folds(folds, make, _resumes(arguments), after_each, before_each)


def train_seeds(
    seeds: Sequence[int],
    arguments: Sequence[str],
    model_class: type[LitClassifier],
    after_each: Callable[[Run], None] = lambda run: None,
    before_each: Callable[[Setup], None] = lambda setup: None,
) -> Run:
    """Trains once with each seed, under one run with their mean and standard deviation, which it returns.

    Args:
        seeds: Different whole numbers.
        arguments: Options of `lit-cnn fit`, without `--seeds`.
        model_class: What is trained.
        after_each: Called with each run that has ended.
        before_each: Called with the setup of each run that is about to begin.

    Raises:
        UsageError: If the options choose a seed or a checkpoint themselves, or as `train`.
    """
    _refuse(arguments, "seeds", "seed_everything", "ckpt_path")
    # Once, so that all seeds start from the same.
    arguments, why = settled(arguments, lambda config: {**config, "seed_everything": list(seeds)})
    parent = of_seeds(seeds, resume=_resumes(arguments))
    setups = ((str(seed), partial(_setup_of, seed, arguments, model_class, why)) for seed in seeds)
    return train_children(parent, setups, after_each, before_each)


def _refuse(arguments: Sequence[str], option: str, *others: str) -> None:
    """Refuses options that an option of several runs does not go with."""
    given = [name for name in others if any(text.partition("=")[0] == f"--{name}" for text in arguments)]
    if given:
        listed = " nor ".join(f"`{'seed' if name == 'seed_everything' else name}`" for name in others)
        reason = f"goes with {'neither ' if len(others) > 1 else 'no '}{listed}"
        raise UsageError(option, None, f"{reason}; `resume=auto` is possible")


def _resumes(arguments: Sequence[str]) -> bool:
    return "auto" in arguments or "--resume=auto" in arguments


def _tuple(numbers: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if numbers is None else tuple(numbers)


def _setup_of(seed: int | None, arguments: Sequence[str], model_class: type[LitClassifier], why_weights: str) -> Setup:
    own = [] if seed is None else [f"--seed_everything={seed}"]
    setup = LitCLI("fit", [*arguments, *own], model_class).setup
    return replace(setup, why_weights=why_weights)


def _start_printer(starting: str = "") -> Callable[[Setup], None]:
    """Returns what prints what a run is about to do; of several runs, where it differs from the last.

    Args:
        starting: The line that who waits at a terminal has read already.
    """
    printed = "" if sys.stderr.isatty() else starting

    def print_start(setup: Setup) -> None:
        nonlocal printed
        if printed and printed == starting:
            print(starting, file=sys.stderr)
        text = start_summary(setup)
        if text != printed:
            print(text, file=sys.stderr)
        printed = text

    return print_start


def print_run(run: Run) -> None:
    """Prints what a run came to, where its report is, what one can do with it, and its id."""
    if not is_first_process():
        return
    print(_wrapped(run.summary.replace("\n", " ")) or "done")
    if not run.id:
        return
    if run.report is not None:
        print(f"Report: {from_here(run.report)}")
    is_network = "oof/acc" in run.metrics if run.children else run.checkpoint is not None
    predict = [f"lit-cnn predict FOLDER --model {run.id[:8]}"] if is_network else []
    print(f"Next: {', '.join([*predict, 'lit-cnn ui'])}")
    _print_id(run)


def _print_child(run: Run) -> None:
    """Prints the first sentence of a run that is one of several, and where it is."""
    print(_wrapped(run.summary.partition("\n")[0]) or "done")
    if run.report is not None:
        print(f"Report: {from_here(run.report)}")
    if run.id:
        _print_id(run)


def _print_id(run: Run) -> None:
    print(f"run {run.id}")
    if not run.is_sent:
        warn_not_sent()


def _wrapped(text: str) -> str:
    """Returns a text in lines as long as the terminal's, 100 columns at most; elsewhere as it is."""
    if not sys.stdout.isatty():
        return text
    width = min(shutil.get_terminal_size().columns, 100)
    return "\n".join(textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False))


def exit_code(run: Callable[[], None]) -> int:
    """Returns the exit code of what trains: 0, 1 for a failure told in one line, 128 + n for signal n."""
    try:
        run()
        return 0
    except RunInterrupted as interruption:
        if not is_first_process() and not interruption.at_once:
            return 0  # else Lightning kills the first process, which may still have values to send
        name = signal.Signals(interruption.signal_number).name
        notes = notes_of(interruption)
        print(f"lit-cnn: stopped by {name}{notes}; the same command with --resume auto goes on", file=sys.stderr)
        return 128 + interruption.signal_number
    except (NonFiniteLossError, RunFailedError) as error:
        print(f"lit-cnn: error: {spelt(error.args[0], spelling_of('fit'))}{notes_of(error)}", file=sys.stderr)
        return 1


def _with_config_of_checkpoint(command: Command, arguments: list[str]) -> list[str]:
    """Puts the configuration that a checkpoint was trained with before the arguments, so that they need not say it."""
    texts = [text for text in arguments if text.startswith("--ckpt_path")]
    if not texts or "--help" in arguments:
        return arguments
    place = arguments.index(texts[0])
    given = texts[0].partition("=")[2] or (arguments[place + 1] if place + 1 < len(arguments) else "")
    if command == "fit" and given == "last":
        return arguments
    tracking = [arguments[i + 1] for i, text in enumerate(arguments[:-1]) if text == "--tracking_uri"]
    find = checkpoint_to_train_on if command == "fit" else checkpoint_file
    path = find(given, resolve_store(tracking[0] if tracking else None))
    record = load_checkpoint(path).get("lit_cnn")
    if record is None:
        raise UsageError("ckpt_path", given, "holds no configuration of lit_cnn", "give one that lit-cnn fit wrote")
    try:
        config = yaml.safe_load(record["config"])
        config["data"] = completed(config["data"])
        kept = _to_train_on(config) if command == "fit" else _to_evaluate(config)
    except (yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError("ckpt_path", path, f"its configuration cannot be read ({reason})", "give another") from error
    folder = Path(tempfile.mkdtemp(prefix="lit_cnn_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    return ["--config", str(folder / "config.yaml"), *arguments]


def _to_train_on(config: dict[str, Any]) -> dict[str, Any]:
    """Returns what a run can take over of another's configuration: nothing that names a class to call."""
    of_a_run = ("resume", "ckpt_path", "track", "tracking_uri", "find_batch_size")
    trainer = {name: value for name, value in config["trainer"].items() if not isinstance(value, list | dict)}
    if left_out := [name for name in config["trainer"].keys() - trainer.keys() if config["trainer"][name]]:
        options = ", ".join(f"--trainer.{name}" for name in sorted(left_out))
        print(f"lit-cnn: warning: {options} of the run before: not taken over, give them again", file=sys.stderr)
    return {**{name: value for name, value in config.items() if name not in of_a_run}, "trainer": trainer}


def _to_evaluate(config: dict[str, Any]) -> dict[str, Any]:
    # The weights come from the checkpoint, what training started from need not be there any more, and an evaluation
    # augments nothing. A student is a network like any other once it is trained.
    model = {name: value for name, value in config["model"].items() if name not in DISTILLATION_OPTIONS}
    return {
        "seed_everything": config["seed_everything"],
        "model": {**model, "weights": None, "transfer": None},
        "data": {**config["data"], "augment": None},
    }
