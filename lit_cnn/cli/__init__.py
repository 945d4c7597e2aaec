"""The `lit-cnn` command.

This module is light: it imports nothing heavy before it knows which command is asked for, so that `lit-cnn --help`
answers at once.
"""

import atexit
import codecs
import difflib
import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from lit_cnn import __version__
from lit_cnn.cli.spelling import spelling_of
from lit_cnn.core.environment import says_not_first, set_environment
from lit_cnn.core.errors import UsageError, spelling_printed
from lit_cnn.core.files import CANNOT_WRITE
from lit_cnn.core.late_imports import postpone_imports
from lit_cnn.core.memory import keep_freed_memory

HELP = f"""\
usage: lit-cnn COMMAND [options]

Find out, on your own images, which CNN, which transfer regime and which test-time trick is worth its cost.

train and evaluate (Lightning):
  fit        train, track the run in MLflow, keep the best checkpoint, test it
             lit-cnn fit FOLDER, with a sub-folder of images for each class
             lit-cnn fit --config lenet5_scratch_digits [--seeds 0 1 2] [--folds 5] [--resume auto]
  validate   evaluate a checkpoint on the validation images
  test       evaluate a checkpoint on the test images
             lit-cnn test --ckpt_path RUN_ID
  predict    classify images, or a folder of them, into a CSV file
             lit-cnn predict FOLDER --model RUN_ID [--min_confidence 0.8]

compare and look:
  describe   show a network layer by layer beside its paper's figures
             lit-cnn describe resnet50 [--compare resnet18] [--stages] [--format json]
  check-data look through the images before training: damaged, doubled, mislabelled
             lit-cnn check-data FOLDER [--strict]
  preview    write a picture of what augmentation makes of the training images
             lit-cnn preview FOLDER [--config augment/geometric]
  advise     try transfer regimes at a few training-set sizes, and say which to take
             lit-cnn advise FOLDER [--budget 15m]
  tune       search options of fit, prune, train the best anew with new seeds
             lit-cnn tune FOLDER --search lr [--trials 30] [--budget 60m] [--parallel 2] [--resume auto]
  best       find the best classifier that a budget of time gives, test it once and export it
             lit-cnn best FOLDER --budget 60m
  report     show again what a run came to, and write its page
             lit-cnn report RUN_ID [--output FOLDER]
  compare    an experiment's runs by configuration over their seeds, or two runs image by image
             lit-cnn compare --experiment digits [--split val] [--format json] [--output FOLDER]
  ensemble   average tracked runs over one and many crops, with intervals and paired tests
             lit-cnn ensemble --experiment digits --top_k 3 --views 1 10
  soup       average the weights of tracked runs into one network, where they lie in one basin
             lit-cnn soup --runs RUN_ID RUN_ID
  distill    train one network on what several say together; takes the options of fit
             lit-cnn distill --teachers RUN_ID --config lenet5_scratch_digits
  configs    list what can follow --config, from any directory; print one, or copy it out
             lit-cnn configs own_images [--output my_images.yaml]
  export     write a run or an ensemble as a model that leaves: ONNX, OpenVINO, MLflow's pyfunc, safetensors
             lit-cnn export RUN_ID --format onnx --output DIR
  ui         open the MLflow UI on this store
  sync       send to MLflow what an earlier run could not
  gc         list what takes room and no run needs; lit-cnn gc --delete removes it

options:
  --help     this text; lit-cnn COMMAND --help for a command's own
  --version  {__version__}
"""

_UNTIL_TOLD = 3.0  # seconds
_OF_FIT_ALONE = ("--seeds", "--folds", "--split_seeds", "--engine", "--address")
_OF_LIGHTNING = ("fit", "validate", "test")
# Command -> the module of its function, imported when it is asked for.
_COMMANDS = {
    "predict": "predict",
    "describe": "verbs",
    "check-data": "check_data",
    "preview": "preview",
    "advise": "advise",
    "tune": "tune",
    "best": "best",
    "report": "report",
    "compare": "compare",
    "ensemble": "ensemble",
    "soup": "soup",
    "distill": "distill",
    "configs": "configs",
    "export": "export",
    "ui": "verbs",
    "sync": "verbs",
    "gc": "gc",
}

# What other programs call a command.
_IN_OTHER_WORDS = {
    "fit": "train training learn run finetune",
    "test": "eval evaluate",
    "validate": "val valid",
    "tune": "search optimize optuna sweep hpo",
    "predict": "classify infer inference",
    "check-data": "check check_data",
    "ui": "mlflow show",
}


def run() -> int:
    """Runs the command of this process, which then ends without taking apart what it has imported: a second or two."""
    code: list[int] = []
    atexit.register(_leave, code)  # the first to be registered is the last to be called
    code.append(main())
    return code[0]


def _leave(code: Sequence[int]) -> None:
    if not code:
        return  # an error that Python is to show
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # a full disk, or closed already: Python is to tell of it
        return
    os._exit(code[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; by default those of this process.

    Returns:
        The exit code: 0; 1 for a run that failed; 2 for a mistake of the user; 128 + n for signal n.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"lit-cnn {__version__}")
        return 0
    print_whatever_there_is()
    set_environment()
    postpone_imports()
    keep_freed_memory()
    spelling = spelling_of(arguments[0])
    try:
        with spelling_printed(spelling):
            return _command(arguments[0])(arguments[1:])
    except UsageError as error:
        if says_not_first():
            time.sleep(_UNTIL_TOLD)  # the first process says the same, and its launcher ends this one
        # One that was raised in a loader's worker process comes with that process's traceback, and ends with itself.
        message = error.in_words(spelling).rpartition("lit_cnn.core.errors.UsageError: ")[2]
        print(f"lit-cnn: error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads has seen enough: lit-cnn configs | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        print(
            f"lit-cnn: error: {error.filename or 'writing'}: {error.strerror}; make room (lit-cnn gc)", file=sys.stderr
        )
        return 1
    except KeyboardInterrupt:
        print("lit-cnn: interrupted", file=sys.stderr)
        return 130


def print_whatever_there_is() -> None:
    r"""Makes this process print letters that the terminal's encoding lacks as `\u00e9`, which is right in JSON too."""
    codecs.register_error("lit_cnn.escape", lambda error: (_escaped(error), error.end))  # type: ignore[attr-defined]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not what a test or a notebook has put there
            stream.reconfigure(errors="lit_cnn.escape")


def _escaped(error: Any) -> str:
    return json.dumps(error.object[error.start : error.end])[1:-1]


def _command(name: str) -> Callable[[list[str]], int]:
    if name in _OF_LIGHTNING:
        return lambda arguments: _train_or_evaluate(name, arguments)
    if name not in _COMMANDS:
        raise UsageError(None, name, "no such command", _meant(name))
    module = importlib.import_module(f"lit_cnn.cli.{_COMMANDS[name]}")
    return getattr(module, name.replace("-", "_"))


def _meant(name: str) -> str:
    commands = (*_OF_LIGHTNING, *_COMMANDS)
    near = [command for command, words in _IN_OTHER_WORDS.items() if name.lower() in words.split()]
    if not near and (name.startswith("-") or os.path.exists(name)):
        return f"the command comes first: lit-cnn fit {name}"
    near = near or difflib.get_close_matches(name, commands, 2, 0.6)
    return f"did you mean lit-cnn {' or '.join(near)}?" if near else f"there are {', '.join(commands)}"


def _train_or_evaluate(name: Any, arguments: list[str]) -> int:
    from lit_cnn.cli.configs import split_arguments
    from lit_cnn.cli.output import tell_starting
    from lit_cnn.cli.precheck import precheck, starting_line, take_engine, take_folds, take_seeds
    from lit_cnn.cli.shorthand import chosen, expand

    engine, address, arguments = take_engine(arguments) if name == "fit" else (None, None, arguments)
    given = arguments
    seeds, arguments = take_seeds(arguments) if name == "fit" else (None, arguments)
    folds, split_seeds, arguments = take_folds(arguments) if name == "fit" else (None, None, arguments)
    arguments = expand(name, arguments)
    precheck(arguments, _OF_FIT_ALONE if name == "fit" else ())
    asks_for_help = {"--help", "-h"}.intersection(arguments)
    if name != "fit" and not asks_for_help and chosen(*split_arguments(arguments), "ckpt_path") is None:
        raise UsageError("ckpt_path", None, f"lit-cnn {name} needs a run's id, or a checkpoint's file")
    starting = starting_line(arguments, seeds, folds) if name == "fit" else ""
    if starting and not asks_for_help:
        tell_starting(starting)  # without a terminal it comes with what is known before the first step
    if engine is not None and not asks_for_help:
        from lit_cnn.cli.fit_on_ray import fit_on_ray

        return fit_on_ray(given, address)
    # Not in the other processes of a distributed run, which are started with a rank, and log nothing.
    if name == "fit" and not says_not_first() and not asks_for_help:
        from lit_cnn.tracking.supervisor import start_early

        start_early()
    from lit_cnn.cli.train import run_trainer_command

    return run_trainer_command(name, arguments, seeds, starting=starting, folds=folds, split_seeds=split_seeds)
