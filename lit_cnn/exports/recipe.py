"""Which networks, weights and temperature the runs stand for that are to be exported."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.calibration import NO_TEMPERATURE
from lit_cnn.evaluation.members import KINDS, find_networks, is_fold_set, networks_of, refuse_twice, refuse_unlike
from lit_cnn.evaluation.predict import Member, load_network
from lit_cnn.evaluation.statistics import is_at_bound
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run

_AGAIN = "make the ensemble again"


@dataclass(frozen=True)
class Recipe:
    """What is exported.

    Attributes:
        runs: The members' runs; those of weight 0 are left out.
        weights: One for each run, their sum is 1.
        rule: The mean of probabilities, or of logits.
        temperature: 1 if none was taken.
        views: 1, or 2 with the mirror image.
    """

    runs: tuple[RunInfo, ...]
    weights: tuple[float, ...]
    rule: Literal["mean", "logits"] = "mean"
    temperature: float = 1.0
    views: int = 1


def find_recipe(store: Store, names: Sequence[Run | str], views: int) -> Recipe:
    """Finds out which networks, weights and temperature the runs stand for.

    Raises:
        UsageError: If a run is not there, is neither a training run nor an ensemble, may not be averaged with the
            others, or the ensemble was not evaluated with so many views.
    """
    runs = find_networks(store, names)
    if len(runs) == 1 and runs[0].tags.get("kind") == "ensemble":
        return _recipe_of_ensemble(store, runs[0], views)
    for run in runs:
        if run.tags.get("kind") not in KINDS and not is_fold_set(run):
            reason = f"{run.name} is no training run"
            raise UsageError("runs", run.run_id, reason, "give runs of lit-cnn fit, or one ensemble")
    refuse_twice(runs)
    refuse_unlike(runs)
    return Recipe(*_networks(store, runs, [1.0] * len(runs)), views=views)


def load_members(store: Store, recipe: Recipe, root: Path | str | None) -> list[Member]:
    """Loads the members' best checkpoints.

    Args:
        store: Where their runs are.
        recipe: Which.
        root: Folder of the images, if it is elsewhere than in training.

    Raises:
        UsageError: If the test images are not those of training, or the members take different images: an export is
            given one.
    """
    members = [load_network(store, run, ["test"], root) for run in recipe.runs]
    for name in ("image_size", "in_channels", "interpolation", "crop_pct", "pixel_range", "background"):
        values = sorted({str(member.record.preprocessing.get(name)) for member in members})
        if len(values) > 1:
            reason = f"the members differ in {name} ({', '.join(values)})"
            raise UsageError("runs", None, reason, "export runs of the same images")
    return members


def _recipe_of_ensemble(store: Store, run: RunInfo, views: int) -> Recipe:
    """Reads the line of the ensemble's table that has its combination and so many views."""
    rule = run.params.get("combine")
    if rule == "vote":
        reason = f"{run.name} votes, which gives no probabilities"
        raise UsageError("runs", run.run_id, reason, "make an ensemble with `combine=mean` or `combine=logits`")
    file = queries.download_artifact(store, run, "evaluation/table.json")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError("runs", run.run_id, f"{file} is no JSON ({error})", _AGAIN) from error
    lines = [line for line in table["rows"] if line["kind"] == "ensemble"]
    # The combination that was asked for comes after the mean of all.
    line = next((line for line in reversed(lines) if line["num_views"] == views), None)
    if line is None:
        crops = sorted({line["num_views"] for line in lines})
        reason = f"{run.name} was evaluated with {', '.join(map(str, crops))} crops"
        raise UsageError("views", views, reason, f"an export has 1 or 2: make an ensemble with `views={views}`")
    if line.get("weights") is None:
        raise UsageError("runs", run.run_id, f"{run.name} is of a release that kept no weights", _AGAIN)
    weights = [float(weight) for weight in line["weights"].split()]
    members = find_networks(store, run.tags["members"].split())
    if rule == "logits" and (sets := [each.name for each in filter(is_fold_set, members)]):
        reason = f"{run.name} averages logits, and {sets[0]} is the mean of several networks' probabilities"
        raise UsageError("runs", run.run_id, reason, "make an ensemble with `combine=mean`")
    temperature, why_none = _temperature_of(line)
    if why_none:
        print(f"lit-cnn: warning: {run.name} is exported without a temperature: {why_none}", file=sys.stderr)
    return Recipe(
        *_networks(store, members, weights),
        "logits" if rule == "logits" else "mean",
        temperature,
        views,
    )


def _networks(
    store: Store, members: Sequence[RunInfo], weights: Sequence[float]
) -> tuple[tuple[RunInfo, ...], tuple[float, ...]]:
    """Returns the networks of members that have a weight, and their weights, with a sum of 1.

    Those of a run of folds share its weight.
    """
    used: list[tuple[RunInfo, float]] = []
    for member, weight in zip(members, weights, strict=True):
        networks = networks_of(store, member) if weight > 0 else []
        used += [(network, weight / len(networks) / sum(weights)) for network in networks]
    runs, shares = zip(*used, strict=True)
    return runs, shares


def _temperature_of(line: Mapping[str, Any]) -> tuple[float, str]:
    """Returns the temperature of a table's line, or 1 and why it has none; 1 and "" if none was asked for."""
    temperature, word = line["temperature"], line.get("no_temperature")
    if temperature is not None:  # earlier releases took every one
        word = "at a bound" if is_at_bound(temperature) else "all right" if line["val_accuracy"] == 1 else None
    return (1.0, NO_TEMPERATURE.get(word, word)) if word else (temperature or 1.0, "")
