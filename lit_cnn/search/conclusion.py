"""The end of `lit-cnn best`: what is combined is chosen on val, then tested, exported and written down."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.core.words import counted
from lit_cnn.evaluation.choice import Choice, choices_on, choose
from lit_cnn.evaluation.comparison import Comparison, outputs_on
from lit_cnn.evaluation.ensemble import ensemble
from lit_cnn.evaluation.fold_sets import load
from lit_cnn.evaluation.members import find_networks
from lit_cnn.evaluation.predict import Member
from lit_cnn.exports import export
from lit_cnn.exports.formats import PACKAGES
from lit_cnn.portable import needed_package
from lit_cnn.search.best import VIEWS, Budget, Trainings
from lit_cnn.search.best_result import Best
from lit_cnn.search.halving import Trained, name_of, rank
from lit_cnn.tracking import Store

_MOST_MEMBERS = 6
_MODEL = "model"


def conclude(
    store: Store, trainings: Trainings, subject: str, budget: Budget, output: Path, say: Callable[[str], None]
) -> Best:
    """Chooses on val what is combined of the trained networks, tests it, and exports it.

    Args:
        store: Where the runs are.
        trainings: What was trained; at least one has ended.
        subject: The data set.
        budget: The time.
        output: Folder of the report and the model.
        say: Called with what someone who waits wants to read.
    """
    outcomes = trainings.outcomes
    taken, views = _there_is_time_for(_last(outcomes), trainings, budget, say)
    members = [load(store, run, ["val"]) for run in find_networks(store, [each.run for each in taken])]
    images = "images out of fold" if taken[0].num_folds else "val images"
    say(f"choosing among {counted(len(members), 'member')} on {images}")
    ways = _ways(members, [name_of(each) for each in taken], Comparison(views, store.predictions_dir))
    chosen = choose(ways)
    used = [(member, weight) for member, weight in zip(members, chosen.weights, strict=True) if weight]
    runs = [member.run.run_id for member, _ in used if member.run is not None]
    say(f"testing {chosen.name}")
    table = ensemble(
        runs,
        views=[chosen.num_views],
        weights=[float(weight) for _, weight in used] if len(used) > 1 else None,
        calibration=True,
        tracking_uri=store.tracking_uri,
    )
    line = table.lines[-1]
    calibration = line.row.calibration
    scaled = calibration.scaled if calibration is not None else None
    assert table.run is not None
    found = Best(
        subject,
        tuple(outcomes),
        tuple(ways),
        chosen,
        f"{len(chosen.correct):,} {images}",
        line.accuracy,
        len(line.row.correct),
        scaled.temperature if scaled is not None else None,
        budget.used,
        budget.seconds,
        run=table.run.id,
    )
    return _exported(found, table.run.id, output, store, say)


def _last(outcomes: Sequence[Trained]) -> list[Trained]:
    """Returns the best trainings on val, of each configuration and seed the one that had most; of folds those alone."""
    folds = [each for each in outcomes if each.num_folds]
    last = {name_of(each): each for each in folds or outcomes}
    return sorted(last.values(), key=rank)[:_MOST_MEMBERS]


def _there_is_time_for(
    taken: list[Trained], trainings: Trainings, budget: Budget, say: Callable[[str], None]
) -> tuple[list[Trained], Sequence[int]]:
    """Returns among which trainings and numbers of views there is time to choose; says what is left out."""
    left = budget.seconds - budget.used
    for chosen, views in ((taken, VIEWS), (taken, VIEWS[:1]), (taken[:1], VIEWS), (taken[:1], VIEWS[:1])):
        networks = max(1, taken[0].num_folds)
        needed = trainings.ending([each.candidate for each in chosen], taken[0].num_val, views[-1], networks)
        if needed <= left:
            break
    left_out = [name_of(each) for each in taken if each not in chosen]
    left_out += ["mirror images"] if views != VIEWS else []
    if left_out:
        say(f"left out: {', '.join(left_out)}; there is no time to choose among them")
    return chosen, views


def _ways(members: Sequence[Member], names: Sequence[str], comparison: Comparison) -> list[Choice]:
    """Returns what can be chosen; networks are combined that take the same images, since an export is given one."""
    kinds: dict[str, list[int]] = {}
    for place, member in enumerate(members):
        kinds.setdefault(str(sorted(member.record.preprocessing.items())), []).append(place)
    found = list[Choice]()
    for places in kinds.values():
        own = [members[place] for place in places]
        costs = [float(member.record.multiply_adds) for member in own]
        outputs = outputs_on(own, "val", comparison)
        for way in choices_on(outputs, [names[place] for place in places], costs, comparison.folder):
            weights = np.zeros(len(members))
            weights[places] = way.weights
            found.append(replace(way, weights=weights))
    return found


def _exported(found: Best, run: str, output: Path, store: Store, say: Callable[[str], None]) -> Best:
    """Exports what was tested: as ONNX where that can be written here, else for torch."""
    format = "torch"
    with contextlib.suppress(UsageError):
        for package in PACKAGES["onnx"]:
            needed_package(package, "format", "onnx")
        format = "onnx"
    folder = output / _MODEL
    say(f"exporting to {folder} ({format})")
    try:
        export(run, folder, format, views=found.chosen.num_views, overwrite=True, tracking_uri=store.tracking_uri)
    except UsageError as error:
        return replace(found, notes=(f"It could not be exported: {error.reason}.",))
    return replace(found, export=folder)
