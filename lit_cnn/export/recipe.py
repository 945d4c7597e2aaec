"""Which networks, weights and temperature the runs stand for that are to be exported."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import KINDS, find_networks, refuse_unlike
from lit_cnn.evaluation.predictions import Member, load_network
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo


@dataclass(frozen=True)
class Recipe:
    """What is exported.

    Attributes:
        runs: The members' runs; those of weight 0 are left out.
        weights: One for each run, their sum is 1.
        rule: The mean of probabilities, or of logits.
        temperature: 1 if none was fitted.
        views: 1, or 2 with the mirror image.
    """

    runs: tuple[RunInfo, ...]
    weights: tuple[float, ...]
    rule: Literal["mean", "logits"] = "mean"
    temperature: float = 1.0
    views: int = 1


def find_recipe(store: Store, run_ids: Sequence[str], views: int) -> Recipe:
    """Finds out which networks, weights and temperature the runs stand for.

    Raises:
        UsageError: If a run is not there, is neither a training run nor an ensemble, may not be averaged with the
            others, or the ensemble was not evaluated with so many views.
    """
    runs = find_networks(store, run_ids)
    if len(runs) == 1 and runs[0].tags.get("kind") == "ensemble":
        return _recipe_of_ensemble(store, runs[0], views)
    for run in runs:
        if run.tags.get("kind") not in KINDS:
            raise UsageError(
                f"RUN {run.run_id}: {run.name} is no training run; give runs of lit-cnn fit, or one ensemble"
            )
    if len({run.run_id for run in runs}) < len(runs):
        raise UsageError(f"RUN {' '.join(run_ids)}: a run is named twice; name each member once")
    try:
        refuse_unlike(runs)
    except UsageError as error:
        raise UsageError(str(error).replace("--runs:", "RUN:", 1)) from error
    return Recipe(tuple(runs), (1 / len(runs),) * len(runs), views=views)


def load_members(store: Store, recipe: Recipe, root: Path | None) -> list[Member]:
    """Loads the members' best checkpoints.

    Args:
        store: Where their runs are.
        recipe: Which.
        root: Folder of the images, if it is elsewhere than in training.

    Raises:
        UsageError: If the test images are not those of training, or the members take different images: an export is
            given one.
    """
    members = [load_network(store, run, ["test"], root, "RUN") for run in recipe.runs]
    for name in ("image_size", "in_channels", "interpolation"):
        values = sorted({str(member.record.preprocessing[name]) for member in members})
        if len(values) > 1:
            raise UsageError(f"RUN: the members differ in {name} ({', '.join(values)}); export runs of the same images")
    return members


def _recipe_of_ensemble(store: Store, run: RunInfo, views: int) -> Recipe:
    """Reads the line of the ensemble's table that has its combination and so many views."""
    rule = run.params.get("combine")
    if rule == "vote":
        raise UsageError(
            f"RUN {run.run_id}: {run.name} votes, which gives no probabilities; use --combine mean or logits"
        )
    file = queries.download_artifact(store, run, "evaluation/table.json")
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"RUN {run.run_id}: {file} is no JSON ({error}); run lit-cnn ensemble again") from error
    lines = [line for line in table["rows"] if line["kind"] == "ensemble"]
    # The combination that was asked for comes after the mean of all.
    line = next((line for line in reversed(lines) if line["num_views"] == views), None)
    if line is None:
        crops = sorted({line["num_views"] for line in lines})
        raise UsageError(
            f"--views {views}: {run.name} was evaluated with {', '.join(map(str, crops))} crops; an export has 1 or 2: "
            f"run lit-cnn ensemble with --views {views}"
        )
    if line.get("weights") is None:
        raise UsageError(
            f"RUN {run.run_id}: {run.name} is of a release that kept no weights; run lit-cnn ensemble again"
        )
    weights = [float(weight) for weight in line["weights"].split()]
    members = find_networks(store, run.tags["members"].split())
    used = [(member, weight) for member, weight in zip(members, weights, strict=True) if weight > 0]
    total = sum(weight for _, weight in used)
    return Recipe(
        tuple(member for member, _ in used),
        tuple(weight / total for _, weight in used),
        "logits" if rule == "logits" else "mean",
        line["temperature"] or 1.0,
        views,
    )
