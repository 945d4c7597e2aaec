"""What the folds of a run came to together, from what their runs keep."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lit_cnn.core.errors import UsageError
from lit_cnn.reports.fold_words import FoldFacts
from lit_cnn.tracking import queries
from lit_cnn.tracking.run import Run
from lit_cnn.training.history import read_validations
from lit_cnn.training.out_of_fold import FOLDER, OUTPUTS, OutOfFold, Outputs, put_together, read_outputs
from lit_cnn.training.setup import Setup


@dataclass(frozen=True, eq=False)
class OfFold:
    """What one network came to.

    Attributes:
        run: Its run.
        num_images: Of its fold.
        share: Of its fold, what it gets right after the epoch that is best there, in [0, 1].
        nested: The same after the epoch that is best on the other folds of its round; None if that is not known.
        curve: The same after each epoch.
    """

    run: Run
    num_images: int
    share: float
    nested: float | None = None
    curve: Sequence[float] = ()


@dataclass(frozen=True, eq=False)
class FoldResult:
    """What the folds came to together.

    Attributes:
        facts: In numbers.
        out_of_fold: What the networks say of the images that they were not trained on; None where not all is there.
        missing: Why not.
        folds: Of each fold, by its label.
    """

    facts: FoldFacts
    out_of_fold: OutOfFold | None
    missing: str = ""
    folds: Mapping[str, OfFold] = field(default_factory=dict)

    @property
    def metrics(self) -> dict[str, float]:
        """As the run above logs them, shares in [0, 1]."""
        facts = self.facts
        found = {"oof/acc": facts.num_correct / facts.num_images}
        if facts.nested is not None and facts.optimism is not None:
            found |= {"oof/acc_nested": facts.nested, "oof/optimism": facts.optimism}
        if facts.test_mean is not None:
            found["test/acc_of_mean"] = facts.test_mean[0] / facts.test_mean[1]
        return found


def fold_result(rounds: Sequence[Mapping[str, Run]], setup: Setup) -> FoldResult | None:
    """Returns what the folds came to together.

    Args:
        rounds: For each round of folds, label -> run that has ended, fold by fold.
        setup: Of one of them.

    Returns:
        None if one ended before its first validation.

    Raises:
        UsageError: If the images have changed between two folds.
    """
    if any("best/val/acc" not in run.metrics for of_round in rounds for run in of_round.values()):
        return None
    outputs, missing = _outputs_of([list(of_round.values()) for of_round in rounds], setup)
    whole = None if missing else put_together(outputs)
    tested = None if missing else _mean_on_test(outputs)
    # Where outputs are missing: the folds of all rounds are as large as those of the last, give or take a few images.
    sizes = [[len(each) for each in setup.data.splits.folds] for _ in rounds]
    if not missing:
        sizes = [[len(each.targets) for each in of_round] for of_round in outputs]
    targets = setup.data.image_set.labels[setup.data.splits.test]
    of_mean = None if tested is None else (int((tested.argmax(axis=1) == targets).sum()), len(targets))
    curves = [[_curves_of(run, setup.options.monitor) for run in of_round.values()] for of_round in rounds]
    result = put_in_numbers(rounds, sizes, curves, setup.options.monitor_mode, whole, of_mean)
    return replace(result, missing=missing)


Curves = Sequence[Sequence[float]]
"""Of one network after each epoch: the metric by which epochs are chosen, the loss and the accuracy on its fold."""


def put_in_numbers(
    rounds: Sequence[Mapping[str, Run]],
    sizes: Sequence[Sequence[int]],
    curves: Sequence[Sequence[Curves | None]],
    mode: str,
    out_of_fold: OutOfFold | None,
    test_mean: tuple[int, int] | None,
) -> FoldResult:
    """Returns what the folds came to together, from what is known of each.

    Args:
        rounds: As in `fold_result`.
        sizes: Images of each fold, in the same order.
        curves: Of each network; None where they are not known.
        mode: `max` or `min`, which epoch is the best.
        out_of_fold: What they say of their folds; None where not all is there.
        test_mean: See `FoldFacts`.
    """
    folds = [_of_round(*of_round, mode) for of_round in zip(rounds, sizes, curves, strict=True)]
    of_rounds = [_mean([each.share for each in of_round.values()], of_round) for of_round in folds]
    nested = [[each.nested for each in of_round.values() if each.nested is not None] for of_round in folds]
    is_nested = all(len(known) == len(of_round) for known, of_round in zip(nested, folds, strict=True))
    by_label = {label: each for of_round in folds for label, each in of_round.items()}
    num_images, best = sum(sizes[0]), float(np.mean(of_rounds))
    of_test = [each.run.metrics["test/acc"] for each in by_label.values() if "test/acc" in each.run.metrics]
    facts = FoldFacts(
        num_correct=round(best * num_images) if out_of_fold is None else int(out_of_fold.correct.sum()),
        num_images=num_images,
        of_folds={label: each.share for label, each in by_label.items()},
        of_rounds=of_rounds,
        best=best,
        nested=float(np.mean([*map(_mean, nested, folds)])) if is_nested else None,
        test=of_test if len(of_test) == len(by_label) else (),
        test_mean=test_mean,
    )
    return FoldResult(facts, out_of_fold, folds=by_label)


def _mean(shares: Sequence[float], folds: Mapping[str, OfFold]) -> float:
    """Returns the mean over the images of folds."""
    return float(np.average(shares, weights=[each.num_images for each in folds.values()]))


def _curves_of(run: Run, monitor: str) -> Curves | None:
    """Returns what the journal of a run has; None if it is not here, or lacks one of the three."""
    folder = run.checkpoint.parent if run.checkpoint is not None else None
    if folder is None or not folder.is_dir():
        return None
    return read_validations(folder, monitor, "val/loss", "val/acc")


def _of_round(
    runs: Mapping[str, Run], sizes: Sequence[int], curves: Sequence[Curves | None], mode: str
) -> dict[str, OfFold]:
    """Returns what the networks of a round came to.

    What each gets right after each epoch is in its journal, so nothing is trained for the nested estimate. A network
    that stopped early stands for its last epoch from then on.
    """
    nested: list[float | None] = [None] * len(runs)
    known = [each for each in curves if each is not None and all(each)]
    if len(known) == len(runs):
        longest = max(len(values) for of_run in known for values in of_run)
        padded = np.array([[[*each, *list(each[-1:]) * (longest - len(each))] for each in of_run] for of_run in known])
        merits, losses = padded[:, 0] if mode == "max" else -padded[:, 0], padded[:, 1]
        chosen = [
            # Of equal epochs the one with the lower loss, as of a run's own.
            # Rounded, or noise of 1e-16 would choose between equal ones.
            np.lexsort([np.delete(each, own, axis=0).mean(axis=0).round(9) for each in (losses, -merits)])[0]
            for own in range(len(known))
        ]
        nested = padded[np.arange(len(known)), 2, chosen].tolist()
    return {
        label: OfFold(run, size, run.metrics["best/val/acc"], own, of_run[-1] if of_run is not None else ())
        for (label, run), size, own, of_run in zip(runs.items(), sizes, nested, curves, strict=True)
    }


def _outputs_of(rounds: Sequence[Sequence[Run]], setup: Setup) -> tuple[list[list[Outputs]], str]:
    """Returns what each network says of its fold, here or from the store; or the first one that is missing."""
    found: list[list[Outputs]] = []
    for of_round in rounds:
        found.append([])
        for child in of_round:
            outputs = read_outputs(child.checkpoint.parent / FOLDER / OUTPUTS) if child.checkpoint else None
            if outputs is None and child.id:
                outputs = _fetched(setup, child.id)
            if outputs is None:
                return [], f"those of {child.name} ({child.id or 'not tracked'}) are not there"
            found[-1].append(outputs)
    return found, ""


def _fetched(setup: Setup, run_id: str) -> Outputs | None:
    store = setup.options.store
    with tempfile.TemporaryDirectory() as folder:
        try:
            (run,) = queries.find_runs(store, [run_id])
            return read_outputs(queries.download_artifact(store, run, f"{FOLDER}/{OUTPUTS}", Path(folder)))
        except UsageError:
            return None


def _mean_on_test(rounds: Sequence[Sequence[Outputs]]) -> np.ndarray | None:
    """Returns the mean of all networks' probabilities for the test images, `(m, K)`; None if one was not tested."""
    of_all = [outputs.test for of_round in rounds for outputs in of_round]
    total: np.ndarray = np.zeros(1)
    for each in of_all:
        if each is None:
            return None
        total = total + each
    return total / len(of_all)
