"""`lit-cnn tune`: searches options of `lit-cnn fit`, and trains the best anew."""

import argparse
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from lit_cnn.cli.configs import SECTIONS, load_config, search_text
from lit_cnn.cli.engine import engine_of
from lit_cnn.cli.option_kinds import option_kinds
from lit_cnn.cli.output import print_result, tell_replaced, tell_starting
from lit_cnn.cli.precheck import (
    arguments_of_trials,
    check_no_fold_given,
    hint,
    images_named,
    known_options,
    value_of,
    without,
)
from lit_cnn.cli.verbs import CommandParser, check_output_file, count_of, seconds_of
from lit_cnn.core.errors import UsageError, as_printed
from lit_cnn.core.run_params import OF_THE_PLACE, decides
from lit_cnn.search.space import CONFIG, Choices, Dimension, Space, arguments_of, read_space, text_of

if TYPE_CHECKING:
    from lit_cnn.search.crew import Crew
    from lit_cnn.search.result import SearchResult
    from lit_cnn.search.study import Plan
    from lit_cnn.training.setup import Setup

T = TypeVar("T")
_TRIED = 3  # draws that are built before anything starts
PRUNERS = ("asha", "hyperband", "none")
SAMPLERS = ("tpe", "random", "grid")
# What decides which images a trial is judged on, and by what.
_NOT_SEARCHED = {
    *("seed_everything", "monitor", "monitor_mode", "trainer.devices", "trainer.num_nodes", "trainer.strategy"),
    *(f"data.{name}" for name in ("dataset", "root", "split_seed", "split_scheme", "val_fraction", "test_fraction")),
    *(f"data.{name}" for name in ("columns", "class_names", "on_bad_image", "outside_root", "weights_expect")),
    *(f"data.{name}" for name in ("num_folds", "fold", "fold_seed")),
    *(f"trainer.{name}" for name in ("limit_val_batches", "overfit_batches", "fast_dev_run")),
    *OF_THE_PLACE[""],
}

# What the first line says of all trials, whatever their configurations have.
_HOW_LONG = {"trainer.max_epochs", "trainer.max_steps", "trainer.max_time"}


def tune(arguments: list[str]) -> int:
    """Takes the options of `lit-cnn fit` and its own; every trial is a tracked run below one."""
    parser = _parser()
    options, of_fit = parser.parse_known_args(arguments)

    def end(run: "Callable[[], SearchResult]") -> int:
        """Prints what the search came to; returns the exit code."""
        from lit_cnn.cli.train import exit_code

        return exit_code(lambda: _print(options, run()))

    return with_crew(options, of_fit, end, parser.options)


def with_crew(
    options: argparse.Namespace,
    of_fit: list[str],
    then: "Callable[[Callable[[], SearchResult]], T]",
    also: Sequence[str] | None = None,
) -> T:
    """Refuses what cannot be searched, starts the workers, and returns what is then made of the search.

    Args:
        options: Of the command.
        of_fit: Options of `lit-cnn fit` for all trials.
        then: Given what searches.
        also: The options that somebody could have typed; None where the search is called from Python.

    Raises:
        UsageError: If it cannot be searched so; nothing is written then.
    """
    try:
        check_output_file(options.output / "report.html")
    except UsageError as error:
        raise UsageError("output", options.output, error.reason, "give another folder") from error
    of_fit = arguments_of_trials("tune", of_fit, also or (), is_typed=also is not None)
    if options.folds:
        check_no_fold_given(of_fit)
    if value_of(of_fit, "ckpt_path") is not None:
        raise UsageError("ckpt_path", value_of(of_fit, "ckpt_path"), "a search trains anew", "leave it out")
    if value_of(of_fit, "trainer.devices") not in (None, "1", "auto"):
        given = value_of(of_fit, "trainer.devices")
        raise UsageError("devices", given, "a trial has one device", "give `parallel` for several trials at once")
    resume = value_of(of_fit, "resume")
    of_fit = without("resume", of_fit)
    tell_replaced(options.output, "best.yaml", resume is not None)
    kinds = option_kinds()

    def is_whole(option: str) -> bool:
        """Whether an option takes whole numbers only."""
        return option in kinds and "int" in kinds[option].types and "float" not in kinds[option].types

    space = read_space(*_text_and_name(options.search), is_whole)
    check_names(space, of_fit, also or ())
    if options.sampler == "grid" and space.combinations() is None:
        raise _endless(space)
    if also is not None:
        tell_starting(f"starting a search on {images_named(of_fit)} …")
    with engine_of(options.engine, options.address, options.parallel, of_fit) as engine:
        from lit_cnn.search.crew import Crew
        from lit_cnn.training.process import hush_lightning

        hush_lightning()
        crew = Crew(engine)
        try:
            return then(lambda: _tune(options, of_fit, space, crew, resume is not None))
        finally:
            crew.close()


def _text_and_name(search: str | Mapping[str, Any]) -> tuple[str, str]:
    """Returns the text of what is searched, and what it is called in a mistake."""
    if isinstance(search, str):
        return search_text(search), search
    return yaml.safe_dump(dict(search), sort_keys=False), "search"


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="lit-cnn tune",
        description="Search options of lit-cnn fit: draw values, end early what is behind, train the best anew with "
        "new seeds, and test it once. Every trial is a tracked run below one. Takes FOLDER and the options of lit-cnn "
        "fit too, for all trials: --config, --trainer.max_epochs, --resume auto.",
        allow_abbrev=False,
    )
    name = "lr, transfer, augment or architecture (lit-cnn configs lists them), or a file: option -> values"
    parser.add_argument("--search", required=True, metavar="NAME", help=name)
    parser.add_argument("--trials", type=count_of, default=30, help="how many, at most; default: 30")
    parser.add_argument("--budget", type=seconds_of, help="60m, 2h: begin no trial that would end later; default: none")
    parser.add_argument("--parallel", type=count_of, help="trials at once; default: one a GPU, else 1")
    parser.add_argument("--engine", choices=["ray"], help="ray: the machines of a Ray cluster; default: this one")
    parser.add_argument("--address", metavar="HOST:PORT", help="of the cluster's head, or auto; default: RAY_ADDRESS")
    parser.add_argument("--sampler", choices=SAMPLERS, default="tpe", help="who draws; default: tpe")
    parser.add_argument("--pruner", choices=PRUNERS, default="asha", help="who ends trials early; default: asha")
    parser.add_argument("--folds", type=_folds, default=0, metavar="K", help="a network on each of K folds a trial")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; --seed_everything is the trainings'")
    parser.add_argument("--final_seeds", type=_number, default=3, help="new seeds for the best; default: 3")
    parser.add_argument("--study", metavar="URL", help="keep the trials in a database; default: a file beside the run")
    parser.add_argument("--output", type=Path, default=Path("search"), help="folder for the report; default: search")
    parser.add_argument("--format", choices=["table", "csv", "json"], default="table", help="default: table")
    return parser


def check_names(space: Space, of_fit: Sequence[str], also: Sequence[str] = ()) -> None:
    """Refuses what the names and kinds of options tell, before anything heavy is imported.

    Args:
        space: What is searched.
        of_fit: Options of `lit-cnn fit` for all trials.
        also: Options of the command itself.

    Raises:
        UsageError: If an option is not known, cannot be searched, is given for all trials, or does not take a value.
    """
    known = known_options()
    for each in space.all_dimensions():
        if each.option.partition("/")[0] == CONFIG:
            _check_configs(space, each, of_fit)
            continue
        if each.option in SECTIONS or not any(
            each.option == name or each.option.startswith(f"{name}.") for name in known - set(SECTIONS)
        ):
            raise space.mistake(each, None, "no such option of lit-cnn fit", hint(each.option, known, "", also))
        if each.option in _NOT_SEARCHED:
            remedy = "leave it out, or give it on the command line for all trials"
            raise space.mistake(each, None, "is the same for all trials of a search", remedy)
        if value_of(of_fit, each.option) is not None:
            given = f"--{each.option} {value_of(of_fit, each.option)}"
            raise space.mistake(each, None, f"{given} on the command line is for all trials", "leave one of them out")
        if any(_is_same(each.option, name) for name in _given(of_fit)):
            raise space.mistake(each, None, "is given on the command line for all trials too", "leave one of them out")
        kind = option_kinds().get(each.option)
        for value in _values(each):
            if kind is not None and not kind.takes(text_of(value)):
                raise space.mistake(each, value, kind.in_words())


def _check_configs(space: Space, each: Dimension, of_fit: Sequence[str]) -> None:
    """Refuses configurations that are not there, or differ in options that are chosen otherwise: those would win."""
    of_each = _options_of(space, each)
    _check_layers(space, each, of_each)
    others, given = [other.option for other in space.beside(each)], _given(of_fit)
    for value, options in of_each.items():
        for option in options:
            # What all of them set alike is not what is searched.
            if all(option in own and own[option] == options[option] for own in of_each.values()):
                continue
            sets = f"sets {option}"
            is_given = any(_is_same(option, name) for name in given)
            if option in _NOT_SEARCHED:
                if not is_given:
                    reason = f"{sets}, which is the same for all trials of a search"
                    raise space.mistake(each, value, reason, "give it on the command line for all trials")
            elif is_given and decides(option) and option not in _HOW_LONG:
                reason = f"{sets}, and so does the command line for all trials, which wins"
                raise space.mistake(each, value, reason, "leave one of them out")
            elif any(_is_same(option, name) for name in others):
                reason = f"{sets}, which is searched too and wins"
                remedy = f"leave one of them out, or put the values below those of {each.option}"
                raise space.mistake(each, value, reason, remedy)


def _options_of(space: Space, each: Dimension) -> dict[Any, dict[str, Any]]:
    """Returns the options that each of the configurations sets."""
    found, (_, _, folder) = dict[Any, dict[str, Any]](), each.option.partition("/")
    for value in _values(each):
        try:
            found[value] = _flat(load_config(f"{folder}/{value}" if folder else str(value)))
        except UsageError as error:
            raise space.mistake(each, value, error.reason, error.remedy) from error
    return found


def _check_layers(space: Space, each: Dimension, of_each: Mapping[Any, Mapping[str, Any]]) -> None:
    """Refuses configurations that set an option which others, drawn together with them, set otherwise."""
    for other in space.beside(each):
        of_other = _options_of(space, other) if other.option.partition("/")[0] == CONFIG else {}
        for (value, own), (others, theirs) in itertools.product(of_each.items(), of_other.items()):
            if option := next((name for name in own if name in theirs and own[name] != theirs[name]), None):
                reason = f"sets {option}, and so does {other.option} {others}, otherwise: one of them would win"
                remedy = f"leave one of them out, or put the values below those of {each.option}"
                raise space.mistake(each, value, reason, remedy)


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options of a configuration by their full name, but those that are added to a list."""
    found = dict[str, Any]()
    for name, value in config.items():
        of_section = name in SECTIONS and isinstance(value, dict)
        found |= {f"{name}.{own}": each for own, each in value.items()} if of_section else {name: value}
    return {name: value for name, value in found.items() if not name.endswith("+")}


def _given(of_fit: Sequence[str]) -> set[str]:
    """Returns the names of options on the command line, those in `--model {lr: 0.1}` too."""
    names = {text.partition("=")[0].removeprefix("--") for text in of_fit if text.startswith("--")}
    for section in SECTIONS:
        if (value := value_of(of_fit, section) or "").lstrip().startswith("{"):
            content = yaml.safe_load(value)
            names |= {f"{section}.{name}" for name in (content if isinstance(content, dict) else ())}
    return {name for name in names if not name.endswith("+")}


def _is_same(option: str, other: str) -> bool:
    """Whether two options are one, or one is a part of the other: `model.arch_options.width`."""
    return (
        option == other or (option.startswith(f"{other}.") and other not in SECTIONS) or other.startswith(f"{option}.")
    )


def _values(each: Dimension) -> Sequence[Any]:
    return each.domain.values if isinstance(each.domain, Choices) else (each.domain.low, each.domain.high)


def _endless(space: Space) -> UsageError:
    endless = next(
        each for each in space.all_dimensions() if not isinstance(each.domain, Choices) and each.domain.steps() is None
    )
    said = endless.domain.in_words()
    return space.mistake(endless, said, "has no end of values, and a grid tries all", "give a list or a step")


def _tune(options: argparse.Namespace, of_fit: list[str], space: Space, crew: "Crew", resume: bool) -> "SearchResult":
    from lit_cnn.cli.lit_cli import DataCLI, settled
    from lit_cnn.search.study import Plan
    from lit_cnn.search.tune import Search, run_search
    from lit_cnn.training.record import recorded_config
    from lit_cnn.training.steps import check_whole_folds
    from lit_cnn.training.trainer import evaluation_trainer

    searched = {each.option for each in space.all_dimensions()}
    why = ""
    if not {"model.arch", "model.weights"} & searched and not any(name.startswith(CONFIG) for name in searched):
        of_fit, why = settled(of_fit)  # once, so that all trials start from the same
    parsed = DataCLI(of_fit)
    if why:
        print(as_printed(f"weights {parsed.plain_config['model']['weights'] or 'none'}: {why}"), file=sys.stderr)
    _check_values(space, of_fit, parsed)
    if options.folds and parsed.plain_config["data"]["num_folds"] is not None:
        raise UsageError("folds", options.folds, "the configuration has a fold already", "leave `num_folds` out there")
    limit = parsed.plain_config["trainer"].get("limit_val_batches")
    for each in space.all_dimensions():
        if each.option == "data.batch_size" and limit not in (None, 1.0):
            reason = f"decides how many val images judge a trial, with limit_val_batches {limit}"
            raise space.mistake(each, None, reason, "leave one of them out")
    how = (options.sampler, options.pruner, options.seed, parsed.options.monitor_mode)
    plan = Plan(options.trials, *how, num_folds=options.folds)
    setup, of_one = _setup_of_one(space, plan, of_fit)
    if plan.num_folds:
        check_whole_folds(evaluation_trainer(setup.trainer))
    crew.check(of_one, setup.data.digests["data"], str(setup.data.options["root"]))
    plan = _with_epochs(plan, space, parsed.plain_config["trainer"], setup)

    def config_of(values: Any) -> dict[str, Any]:
        """Returns the configuration of a trial as a file for `--config` has it."""
        own = DataCLI([*of_fit, *arguments_of(values)]).plain_config
        kept = {name: value for name, value in own.items() if name not in OF_THE_PLACE[""]}
        return {**kept, "trainer": {name: value for name, value in own["trainer"].items() if value is not None}}

    first = int(parsed.plain_config["seed_everything"]) + 1
    search = Search(
        space,
        plan,
        of_fit,
        recorded_config(parsed.plain_config),
        setup,
        config_of,
        options.budget,
        range(first, first + options.final_seeds),
        resume,
        options.study,
        options.output,
    )
    return run_search(search, crew, lambda line: print(line, file=sys.stderr, flush=True))


def _print(options: argparse.Namespace, result: "SearchResult") -> None:
    print_result(result, options.format)
    if options.format == "table":
        print(f"\nReport: {options.output / 'report.html'}")
        folds = f"--folds {options.folds} " if options.folds else ""
        print(f"Next: lit-cnn fit {folds}--config {options.output / 'best.yaml'}, lit-cnn ui")
        print(f"run {result.run}")


def _setup_of_one(space: Space, plan: "Plan", of_fit: Sequence[str]) -> tuple["Setup", list[str]]:
    """Returns the setup and the options of a trial that may be drawn: of three, one that can be built."""
    from lit_cnn.cli.lit_cli import LitCLI
    from lit_cnn.search.study import first_values
    from lit_cnn.training.folds import as_folds

    of_first = [f"--data.num_folds={plan.num_folds}", "--data.fold=0"] if plan.num_folds else []
    mistakes = []
    for number in range(_TRIED):
        of_one = [*of_fit, *arguments_of(first_values(space, plan.seed + number))]
        try:
            with as_folds():
                return LitCLI("fit", [*of_one, *of_first]).setup, of_one
        except UsageError as error:
            mistakes.append(error)
    raise mistakes[0]


def _check_values(space: Space, of_fit: Sequence[str], parsed: Any) -> None:
    """Refuses values that the parser of `lit-cnn fit` does, one by one."""
    from lit_cnn.cli.parser import arranged

    for each in space.all_dimensions():
        for value in _values(each):
            try:
                parsed.parser.parse_args(arranged([*of_fit, *arguments_of({each.option: value})]))
            except UsageError as error:
                raise space.mistake(each, value, error.reason, error.remedy) from error


def _with_epochs(plan: "Plan", space: Space, base: Mapping[str, Any], setup: "Setup") -> "Plan":
    """Returns the plan with the most epochs that a trial trains."""
    from lit_cnn.training.steps import limited

    epochs = [int(options["max_epochs"] or -1) for options in (base, setup.trainer)]
    for each in space.all_dimensions():
        if each.option == "trainer.max_epochs":
            epochs += [int(value) for value in _values(each)]
    if max(epochs) < 1:
        batches = limited(setup.data.num_train_batches, setup.trainer.get("limit_train_batches"))
        epochs = [-(-int(setup.trainer.get("max_steps") or 1) // max(1, batches))]
    return replace(plan, max_epochs=max(1, *epochs))


def _number(text: str) -> int:
    return 0 if text == "0" else count_of(text)


def _folds(text: str) -> int:
    if not text.isdigit() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least 2")
    return int(text)
