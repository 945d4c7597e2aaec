"""Two networks on the same images: what one wins over the other, and whether that could be chance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_cnn.core.fonts import class_labels, note_on_labels
from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import counted
from lit_cnn.data.contact_sheet import captioned_images
from lit_cnn.data.preview import write_png
from lit_cnn.evaluation.activation import maps_of
from lit_cnn.evaluation.decision import ALPHA
from lit_cnn.evaluation.paired import score_limits
from lit_cnn.evaluation.statistics import McNemar, accuracy_interval, images_for_power, mcnemar_exact, paired_bootstrap
from lit_cnn.reports.mistakes import write_mistakes
from lit_cnn.reports.page import bullets, details, grid, heading, picture
from lit_cnn.reports.predictions import Predictions
from lit_cnn.reports.result import Result, json_text, with_limits, write_texts
from lit_cnn.reports.wording import (
    accuracy_text,
    p_text,
    percent,
    percent_words,
    points,
    points_words,
    rounded_up,
)
from lit_cnn.tracking.run import Run
from lit_cnn.training.classifier import LitClassifier

if TYPE_CHECKING:
    from rich.console import RenderableType

_MOST = 16  # images in a picture


@dataclass(frozen=True, eq=False, repr=False)
class Pair(Result):
    """What two networks predict for the same images; accuracies and differences are fractions.

    Attributes:
        first: What the first network predicts.
        second: What the second predicts.
        split: Name of the split that the images are.
        accuracies: Of both, with their 95 % Wilson limits.
        difference: The first's accuracy minus the second's, with its 95 % paired bootstrap limits.
        mcnemar: Exact test (a: the first, b: the second).
        images_needed: Images that would show this difference with a power of 0.8; None if there is none.
        load_models: Return the networks whose class-activation maps a report shows; None for no maps.
        run: The run that holds its report in MLflow, where one was asked for.
        subject: What the two have in common: data set, network, regime.
    """

    first: Predictions
    second: Predictions
    split: str
    accuracies: tuple[Interval, Interval]
    difference: Interval
    mcnemar: McNemar
    images_needed: int | None
    load_models: tuple[Callable[[], LitClassifier], Callable[[], LitClassifier]] | None = None
    run: Run | None = None
    subject: str = ""

    def won(self, most: int) -> np.ndarray:
        """Returns `(n,)` int, places of images that only the first gets right; its most confident ones come first."""
        return _only(self.first, self.second)[:most]

    def lost(self, most: int) -> np.ndarray:
        """Returns `(n,)` int, places of images that only the second gets right; its most confident ones come first."""
        return _only(self.second, self.first)[:most]

    @property
    def title(self) -> str:
        """Title of its page."""
        return f"{self.first.name} against {self.second.name}{f': {self.subject}' if self.subject else ''}"

    @property
    def limits(self) -> Interval:
        """The first's accuracy minus the second's with Tango's limits, which two have too that never disagree."""
        return score_limits(self.mcnemar.only_a, self.mcnemar.only_b, len(self.first.labels))

    def answer(self) -> str:
        """Returns which of the two is better, or what the images exclude and would miss."""
        n, test = len(self.first.labels), self.mcnemar
        names, images = (self.first.name, self.second.name), counted(n, f"{self.split} image")
        shares = [percent(accuracy.mean, n) for accuracy in self.accuracies]
        if test.p_value < ALPHA:
            better, worse = (0, 1) if self.difference.mean > 0 else (1, 0)
            mean, low, high = self.limits if better == 0 else (-self.limits.mean, -self.limits.high, -self.limits.low)
            return (
                f"Take {names[better]}: {shares[better]} % against {shares[worse]} % of {images}, "
                f"{points_words(Interval(mean, low, high), n)} over {names[worse]}."
            )
        if not test.only_a and not test.only_b:
            said = f"No image tells {names[0]} and {names[1]} apart: both are right on {shares[0]} % of {images}"
        else:
            said = f"{images} do not tell {names[0]} and {names[1]} apart: {shares[0]} % and {shares[1]} %"
        excluded = f"{100 * max(-self.limits.low, self.limits.high):.2g} points"
        return f"{said}. What they exclude is a true difference above {excluded} (95 %)."

    def sentences(self) -> list[str]:
        """Returns in words how accurate both are, what the first wins and loses, and whether that could be chance."""
        first, second = self.first.name, self.second.name
        images = counted(len(self.first.labels), f"{self.split} image")
        said = [
            f"{predictions.name}: {accuracy_text(accuracy)} % on {images}."
            for predictions, accuracy in zip((self.first, self.second), self.accuracies, strict=True)
        ]
        test = self.mcnemar
        if not test.only_a and not test.only_b:
            return said
        said.append(f"{first} wins {counted(test.only_a, 'image')} over {second} and loses {test.only_b:,}.")
        p_value = p_text(test.p_value)
        said.append(
            f"{first} minus {second}: {points(self.difference)}, 95 % paired bootstrap; exact McNemar test p "
            f"{'< 0.001' if p_value.startswith('<') else '= ' + p_value}."
        )
        if self.images_needed is not None:
            needed = rounded_up(self.images_needed)
            said.append(f"A true difference of this size would take about {needed} images (power 0.8, level 0.05).")
        return said

    def text(self) -> "Sequence[RenderableType]":
        """Returns the sentences."""
        from rich.text import Text

        return [Text(sentence) for sentence in self.sentences()]

    def sections(self) -> list[str]:
        """Returns the numbers as a table, and the sentences, in HTML."""
        n, test = len(self.first.labels), self.mcnemar
        rows = [
            (predictions.name, percent_words(accuracy, n), f"{alone:,}")
            for predictions, accuracy, alone in zip(
                (self.first, self.second), self.accuracies, (test.only_a, test.only_b), strict=True
            )
        ]
        titles = ("Network", f"{self.split.capitalize()} [95 %]", "Right alone, images")
        return [grid(titles, rows), details("Statistics", bullets(self.sentences()))]

    def records(self) -> list[dict[str, Any]]:
        """Returns one row: fractions, in full precision; None where there is no number."""
        return [
            {
                "first": self.first.name,
                "second": self.second.name,
                "split": self.split,
                "num_images": len(self.first.labels),
                **with_limits("first_accuracy", self.accuracies[0]),
                **with_limits("second_accuracy", self.accuracies[1]),
                **with_limits("difference", self.difference),
                "won": self.mcnemar.only_a,
                "lost": self.mcnemar.only_b,
                "p": self.mcnemar.p_value,
                "images_needed": self.images_needed,
            }
        ]

    def to_json(self) -> str:
        """Returns the answer, every number, in fractions and full precision, and the sentences; null for no number."""
        return json_text({"answer": self.answer(), **self.records()[0], "sentences": self.sentences()})

    def write(self, folder: Path) -> list[Path]:
        """Writes numbers, pictures of images won and lost, both networks' mistakes, and a page with all of it."""
        files = write_texts(folder, {"pair.csv": self.to_csv(), "pair.json": self.to_json()})
        parts: list[str] = []
        for name, only, places in (
            ("won", self.first.name, self.won(_MOST)),
            ("lost", self.second.name, self.lost(_MOST)),
        ):
            if len(places):
                file = folder / f"{name}.png"
                write_png(file, _sheet(self, places))
                files.append(file)
                parts += [heading(f"Only {only} is right"), picture(file, f"images {name}")]
        for predictions, load_model, prefix in zip(
            (self.first, self.second), self.load_models or (None, None), ("first_", "second_"), strict=True
        ):
            more, section = write_mistakes(predictions, folder, maps_of(load_model), prefix)
            files += more
            parts.append(section)
        return files + write_texts(folder, {"report.html": self.to_html(*parts)})


def build_pair(first: Predictions, second: Predictions, split: str) -> Pair:
    """Compares what two networks predict for the same images in the same order.

    Raises:
        ValueError: If their true classes differ.
    """
    if not np.array_equal(first.targets, second.targets):
        raise ValueError("build_pair: the predictions are for different images")
    right, other = first.correct, second.correct
    return Pair(
        first,
        second,
        split,
        (accuracy_interval(right), accuracy_interval(other)),
        paired_bootstrap(right.astype(float) - other),
        mcnemar_exact(right, other),
        images_for_power(right, other),
    )


def _only(right: Predictions, wrong: Predictions) -> np.ndarray:
    places = np.flatnonzero(right.correct & ~wrong.correct)
    surest: np.ndarray = places[np.argsort(-right.confidence[places], kind="stable")]
    return surest


def _sheet(pair: Pair, places: np.ndarray) -> np.ndarray:
    images = [pair.first.image_set.images[index] for index in pair.first.indices[places]]
    class_names, captions = pair.first.class_names, []
    names = class_labels(class_names)
    for place in places:
        lines = [pair.first.of(place)[0].rpartition("/")[2], f"is {names[pair.first.targets[place]]}"]
        for number, predictions in ((1, pair.first), (2, pair.second)):
            lines.append(f"{number}: {names[predictions.labels[place]]}, {predictions.of(place)[3]} %")
        captions.append(lines)
    return captioned_images(images, captions, note_on_labels(class_names, names))
