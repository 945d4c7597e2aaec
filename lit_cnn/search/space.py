"""What a search tries: options of `lit-cnn fit` and the values that each may take, from a flat YAML file.

model.lr: {low: 0.0001, high: 0.1, log: true}   # a range; `step` too; whole numbers where the option takes them
model.weight_decay: [0, 0.01, 0.1]               # a list
config/augment: [none, standard, strong]         # --config augment/none, …; `config: [a.yaml, b.yaml]` for files
model.optimizer:                                 # values that bring options of their own
  adamw:
  sgd:
    model.optimizer_options: [{momentum: 0.9}, {momentum: 0.9, nesterov: true}]
"""

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import yaml

from lit_cnn.core.errors import UsageError

CONFIG = "config"
"""The option that is given several times: `config/augment` is one with the names of a folder."""
_OF_RANGE = ("low", "high", "log", "step")
_DIGITS = 4  # of a number that is drawn: in a log range of itself, else of the width of its range

Values = Mapping[str, Any]
"""Option -> its value."""


class Draws(Protocol):
    """Who chooses the values: an Optuna trial."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float:
        """Chooses a number."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Chooses a whole number."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> Any:
        """Chooses one of several."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        log: Whether each factor is as likely as another, and not each distance.
        step: From one to the next; None for any.
        is_whole: Whether they are whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    is_whole: bool = False

    def draw(self, trial: Draws, label: str) -> float:
        """Chooses a number, with as many digits as say something."""
        if self.is_whole:
            step = int(self.step or 1)
            return trial.suggest_int(label, int(self.low), int(self.high), step=step, log=self.log)
        number = trial.suggest_float(label, self.low, self.high, step=self.step, log=self.log)
        width = number if self.log or not number else self.high - self.low
        rounded = round(number, _DIGITS - 1 - math.floor(math.log10(abs(width)))) if width else number
        return min(max(rounded, self.low), self.high)

    def steps(self) -> list[float] | None:
        """Returns all of its numbers; None where there is no end of them."""
        step = self.step or (1 if self.is_whole else None)
        if step is None:
            return None
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        numbers = [self.low + place * step for place in range(count)]
        return [int(number) for number in numbers] if self.is_whole else [round(number, 12) for number in numbers]

    def in_words(self) -> str:
        """Returns `0.001 to 0.1 (log)`."""
        more = " (log)" if self.log else f" (step {self.step:g})" if self.step else ""
        return f"{text_of(self.low)} to {text_of(self.high)}{more}"


@dataclass(frozen=True)
class Choices:
    """Values of which one is taken.

    Attributes:
        values: As YAML has them.
        brings: Text of a value -> the dimensions that are there with it only.
    """

    values: tuple[Any, ...]
    brings: Mapping[str, tuple["Dimension", ...]] = field(default_factory=dict)

    def draw(self, trial: Draws, label: str) -> Any:
        """Chooses a value."""
        texts = [text_of(value) for value in self.values]
        return self.values[texts.index(trial.suggest_categorical(label, texts))]

    def in_words(self) -> str:
        """Returns `adamw, sgd`."""
        return ", ".join(text_of(value) for value in self.values)


@dataclass(frozen=True)
class Dimension:
    """An option that a search chooses.

    Attributes:
        option: As `lit-cnn fit` spells it, `model.lr`; or `config`, `config/augment`.
        label: Its name in the study: the option, and with which value it comes where it does so with several.
        domain: What it may be.
    """

    option: str
    label: str
    domain: Range | Choices


@dataclass(frozen=True)
class Space:
    """All that a search may try.

    Attributes:
        dimensions: The options, in the order of the file.
        file: Where they stand.
    """

    dimensions: tuple[Dimension, ...]
    file: str = ""

    def draw(self, trial: Draws) -> dict[str, Any]:
        """Returns option -> value, as an Optuna trial chooses."""
        return dict(_draw(self.dimensions, trial))

    def all_dimensions(self) -> list[Dimension]:
        """Returns every dimension, those that come with a value after it."""
        return list(_all(self.dimensions))

    def beside(self, dimension: Dimension) -> list[Dimension]:
        """Returns the dimensions that may be drawn together with one, but those that come with its own values."""
        return _beside(self.dimensions, dimension) or []

    def combinations(self) -> list[dict[str, Any]] | None:
        """Returns every combination, each as label -> what Optuna is to choose; None where there is no end of them."""
        return _combinations(self.dimensions)

    def in_words(self) -> list[str]:
        """Returns a line for each dimension: `model.lr: 0.001 to 0.1 (log)`."""
        return [f"{each.label}: {each.domain.in_words()}" for each in self.all_dimensions()]

    def mistake(self, dimension: Dimension, value: Any, reason: str, remedy: str = "") -> UsageError:
        """Returns the mistake of a value in the file."""
        return _mistake(self.file, dimension.option, value, reason, remedy)


def read_space(text: str, file: str, is_whole: Callable[[str], bool] = lambda option: False) -> Space:
    """Returns what a search file says; which options there are, and what they take, is not asked here.

    Args:
        text: The file's.
        file: What it is called in a mistake.
        is_whole: Whether an option takes whole numbers only.

    Raises:
        UsageError: If it holds no options, one of them twice, or a range or list with nothing in it.
    """
    loader = _Loader(text)
    try:
        content = loader.get_single_data()
    except yaml.YAMLError as error:
        if isinstance(error, _TwiceError):
            raise _mistake(file, error.name, None, "stands there twice", "keep one of them") from error
        raise UsageError("search", file, f"is no YAML: {' '.join(str(error).split())}") from error
    finally:
        loader.dispose()
    example = "give lines such as 'model.lr: {low: 0.001, high: 0.1, log: true}'"
    if not content:
        raise UsageError("search", file, "holds no options", example)
    if not isinstance(content, dict):
        raise UsageError("search", file, "is no mapping of options", example)
    reader = _Reader(file, is_whole, Counter(_options_in(content)))
    space = Space(reader.dimensions(content, (), set()), file)
    combinations = space.combinations()
    if combinations is not None and len(combinations) < 2:
        raise UsageError("search", file, "there is one combination, and nothing to choose", "give an option 2 values")
    return space


def arguments_of(values: Values) -> list[str]:
    """Returns values as arguments of `lit-cnn fit`."""
    return [_argument(option, value) for option, value in values.items()]


def _argument(option: str, value: Any) -> str:
    name, _, folder = option.partition("/")
    if name == CONFIG:
        return f"--config={f'{folder}/' if folder else ''}{value}"
    return f"--{option}={text_of(value)}"


def text_of(value: Any) -> str:
    """Returns a value as it is typed: text as it is, all else as YAML and JSON have it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:.0f}"
    return json.dumps(value)


def in_words(values: Values) -> str:
    """Returns values for reading: `lr 0.003, optimizer sgd`."""
    return ", ".join(f"{short_name(option)} {text_of(value)}" for option, value in values.items())


def short_name(label: str) -> str:
    """Returns an option without its section: `lr`; of `config/augment`, `augment`."""
    return re.sub(r"^(model|data|trainer|config)[./]", "", label)


@dataclass(frozen=True)
class _Reader:
    file: str
    is_whole: Callable[[str], bool]
    counts: Mapping[str, int]

    def dimensions(self, content: Mapping[Any, Any], comes_with: tuple[str, ...], taken: set[str]) -> tuple[Any, ...]:
        """Returns the dimensions of a mapping; adds to `taken` the options that are spoken for."""
        found = []
        for option, given in content.items():
            name = str(option)
            if name in taken:
                raise _mistake(self.file, name, None, "may come from two places at once", "keep one of them")
            taken.add(name)
            label = name if self.counts[name] == 1 or not comes_with else f"{name} ({', '.join(comes_with)})"
            found.append(Dimension(name, label, self._domain(name, given, comes_with, taken)))
        return tuple(found)

    def _domain(self, name: str, given: Any, comes_with: tuple[str, ...], taken: set[str]) -> Range | Choices:
        if isinstance(given, dict) and (not given or set(given) & set(_OF_RANGE)):
            return self._range(name, given)
        if not isinstance(given, dict):
            values = given if isinstance(given, list) else [given]
            self._check_values(name, values)
            return Choices(tuple(values))
        brings, before = {}, set(taken)
        self._check_values(name, list(given))
        for value, own in given.items():
            if own is not None and not isinstance(own, dict):
                remedy = "give a mapping, or a list of values"
                reason = "below a value stand the options that come with it, or nothing"
                raise _mistake(self.file, name, f"{text_of(value)}: {text_of(own)}", reason, remedy)
            with_it = set(before)
            brings[text_of(value)] = self.dimensions(own or {}, (*comes_with, text_of(value)), with_it)
            taken |= with_it
        return Choices(tuple(given), brings)

    def _check_values(self, name: str, values: Sequence[Any]) -> None:
        if not values:
            raise _mistake(self.file, name, "[]", "is an empty list", "give values")
        twice = [text for text, count in Counter(map(text_of, values)).items() if count > 1]
        if twice:
            raise _mistake(self.file, name, twice[0], "is in the list twice", "keep one of them")

    def _range(self, name: str, given: Mapping[Any, Any]) -> Range:
        said = ", ".join(f"{key}: {text_of(value)}" for key, value in given.items()).join("{}")

        def wrong(reason: str, remedy: str = "") -> UsageError:
            """Returns the mistake of this range."""
            return _mistake(self.file, name, said, reason, remedy)

        form = "give {low: 0.001, high: 0.1}, and log: true or step: 0.1 if wanted"
        if unknown := [str(key) for key in given if key not in _OF_RANGE]:
            raise wrong(f"{unknown[0]} says nothing of a range", form)
        if missing := [key for key in ("low", "high") if key not in given]:
            raise wrong(f"has no {missing[0]}", form)
        for key in ("low", "high", "step"):
            number = given.get(key, 1)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise wrong(f"{key} is no number", form)
        low, high, log, step = given["low"], given["high"], given.get("log", False), given.get("step")
        if not isinstance(log, bool):
            raise wrong("log is neither true nor false")
        if low > high:
            raise wrong("low is above high: the range is empty", "exchange them")
        if low == high:
            raise wrong("low is high: there is nothing to choose", f"give the value alone: {name}: {text_of(low)}")
        if log and low <= 0:
            raise wrong("a log range begins above 0", "give a low such as 0.0001, or leave log out")
        if step is not None and (log or step <= 0 or step > high - low):
            reason = "step and log exclude each other" if log else "step does not lead from low to high"
            raise wrong(reason, "leave one out" if log else "give one between 0 and their distance")
        numbers = [low, high, *([] if step is None else [step])]
        is_whole = self.is_whole(name)
        if is_whole and not all(float(number).is_integer() for number in numbers):
            raise wrong("the option takes whole numbers", "give whole numbers")
        found = Range(low, high, log, step, is_whole)
        if step is not None and (last := (found.steps() or [high])[-1]) < high - 1e-9:
            raise wrong(f"step leads to {text_of(last)} and not to high", f"give high: {text_of(last)}")
        return found


def _mistake(file: str, option: str, value: Any, reason: str, remedy: str = "") -> UsageError:
    said = "" if value is None else f" {text_of(value)}"
    return UsageError("search", file, f"{option}{said}: {reason}", remedy)


def _options_in(content: Any) -> Iterator[str]:
    for option, given in content.items():
        yield str(option)
        if isinstance(given, dict) and not set(given) & set(_OF_RANGE):
            for own in given.values():
                yield from _options_in(own) if isinstance(own, dict) else ()


def _draw(dimensions: Sequence[Dimension], trial: Draws) -> Iterator[tuple[str, Any]]:
    for each in dimensions:
        value = each.domain.draw(trial, each.label)
        yield each.option, value
        if isinstance(each.domain, Choices):
            yield from _draw(each.domain.brings.get(text_of(value), ()), trial)


def _all(dimensions: Sequence[Dimension]) -> Iterator[Dimension]:
    for each in dimensions:
        yield each
        if isinstance(each.domain, Choices):
            for own in each.domain.brings.values():
                yield from _all(own)


def _beside(dimensions: Sequence[Dimension], wanted: Dimension) -> list[Dimension] | None:
    for place, each in enumerate(dimensions):
        others = list(_all([*dimensions[:place], *dimensions[place + 1 :]]))
        if each is wanted:
            return others
        for own in each.domain.brings.values() if isinstance(each.domain, Choices) else ():
            if (found := _beside(own, wanted)) is not None:
                return [each, *others, *found]
    return None


def _combinations(dimensions: Sequence[Dimension]) -> list[dict[str, Any]] | None:
    of_each = []
    for each in dimensions:
        if isinstance(each.domain, Range):
            numbers = each.domain.steps()
            options: Any = None if numbers is None else [{each.label: number} for number in numbers]
        else:
            options = []
            for value in each.domain.values:
                below = _combinations(each.domain.brings.get(text_of(value), ()))
                if below is None:
                    return None
                options += [{each.label: text_of(value), **own} for own in below]
        if options is None:
            return None
        of_each.append(options)
    return [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*of_each)]


class _TwiceError(yaml.YAMLError):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Loader(yaml.SafeLoader):
    """Reads `1e-3` as a number, as YAML 1.2 does, and refuses a key that stands twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping."""
        names = [str(key.value) for key, _ in node.value]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise _TwiceError(twice[0])
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
