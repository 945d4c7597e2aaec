"""Two networks on the same images, in words, for a program, as pictures and as a page."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from lit_cnn.core.files import write_text_atomically
from lit_cnn.core.words import counted
from lit_cnn.data.contact_sheet import captioned_images
from lit_cnn.data.preview import write_png
from lit_cnn.evaluation.pair import Pair
from lit_cnn.evaluation.report.page import bullets, heading, page, picture
from lit_cnn.evaluation.report.verdict import write_verdict
from lit_cnn.evaluation.report.wording import accuracy_text, p_text, points, rounded_up
from lit_cnn.training.classifier import LitClassifier

_MOST = 16  # images in a picture


def pair_sentences(pair: Pair) -> list[str]:
    """Says how accurate both are, what the first wins and loses, and whether that could be chance."""
    first, second = pair.first.name, pair.second.name
    said = [
        f"{verdict.name}: {accuracy_text(accuracy)} % on {len(verdict.labels):,} {pair.split} images."
        for verdict, accuracy in zip((pair.first, pair.second), pair.accuracies, strict=True)
    ]
    test = pair.mcnemar
    said.append(f"{first} wins {counted(test.only_a, 'image')} over {second} and loses {test.only_b:,}.")
    p_value = p_text(test.p_value)
    said.append(
        f"{first} minus {second}: {points(pair.difference)}, 95 % paired bootstrap; exact McNemar test p "
        f"{'< 0.001' if p_value.startswith('<') else '= ' + p_value}."
    )
    if pair.images_needed is None:
        said.append("Their accuracies are equal: no number of images would tell them apart.")
    else:
        needed = rounded_up(pair.images_needed)
        said.append(f"A true difference of this size would take about {needed} images (power 0.8, level 0.05).")
    return said


def pair_json(pair: Pair) -> str:
    """Returns every number, in fractions and full precision, and the sentences; null for no number."""
    return json.dumps(_record(pair) | {"sentences": pair_sentences(pair)}, indent=2, ensure_ascii=False) + "\n"


def pair_csv(pair: Pair) -> str:
    """Returns a header and one line; fractions; empty where there is no number."""
    text = io.StringIO()
    record = _record(pair)
    writer = csv.DictWriter(text, list(record), lineterminator="\n")
    writer.writeheader()
    writer.writerow(record)
    return text.getvalue()


def write_pair(pair: Pair, models: tuple[LitClassifier, LitClassifier], folder: Path) -> list[Path]:
    """Writes numbers, pictures of images won and lost, both networks' mistakes, and a page with all of it.

    Returns:
        The files.
    """
    texts = {"pair.csv": pair_csv(pair), "pair.json": pair_json(pair)}
    for name, text in texts.items():
        write_text_atomically(folder / name, text)
    files = [folder / name for name in texts]
    parts = [bullets(pair_sentences(pair))]
    for name, places in (("won", pair.won(_MOST)), ("lost", pair.lost(_MOST))):
        if len(places):
            file = folder / f"{name}.png"
            write_png(file, _sheet(pair, places))
            files.append(file)
            only = pair.first.name if name == "won" else pair.second.name
            parts += [heading(f"Only {only} is right"), picture(file, f"images {name}")]
    for verdict, model, prefix in zip((pair.first, pair.second), models, ("first_", "second_"), strict=True):
        more, section = write_verdict(verdict, folder, model, prefix)
        files += more
        parts.append(section)
    report = folder / "report.html"
    write_text_atomically(report, page(f"{pair.first.name} against {pair.second.name}", *parts))
    return [*files, report]


def _sheet(pair: Pair, places: np.ndarray) -> np.ndarray:
    first = pair.first
    images = [first.image_set.images[index] for index in first.indices[places]]
    captions = [
        [
            first.image_set.paths[first.indices[place]].rpartition("/")[2],
            f"is {first.class_names[first.targets[place]]}",
            *(
                f"{number}: {verdict.class_names[verdict.labels[place]]}, "
                f"{100 * verdict.probabilities[place, verdict.labels[place]]:.1f} %"
                for number, verdict in ((1, first), (2, pair.second))
            ),
        ]
        for place in places
    ]
    return captioned_images(images, captions)


def _record(pair: Pair) -> dict[str, Any]:
    accuracies = {
        f"{which}_{name}": value
        for which, accuracy in zip(("first", "second"), pair.accuracies, strict=True)
        for name, value in zip(("accuracy", "accuracy_low", "accuracy_high"), accuracy, strict=True)
    }
    return {
        "first": pair.first.name,
        "second": pair.second.name,
        "split": pair.split,
        "num_images": len(pair.first.labels),
        **accuracies,
        "difference": pair.difference.mean,
        "difference_low": pair.difference.low,
        "difference_high": pair.difference.high,
        "won": pair.mcnemar.only_a,
        "lost": pair.mcnemar.only_b,
        "p": pair.mcnemar.p_value,
        "images_needed": pair.images_needed,
    }
