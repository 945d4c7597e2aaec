"""What the folds of a run came to, read from its store: no image is looked at and no network is run."""

from collections.abc import Sequence

from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import networks_of
from lit_cnn.tracking import Store, queries
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.run import Run
from lit_cnn.training.fold_result import Curves, FoldResult, put_in_numbers
from lit_cnn.training.out_of_fold import FOLDER, LOGITS, OutOfFold, read_out_of_fold


def stored_folds(store: Store, run: RunInfo) -> FoldResult:
    """Returns what the folds of a run came to.

    Args:
        store: Where it is.
        run: A run of folds that has come to its end.

    Raises:
        UsageError: If its logits are not there, or one of its folds.
    """
    networks = networks_of(store, run)
    found = _out_of_fold(store, run)
    num_folds = int(run.tags["num_folds"])
    labels = _labels(networks)
    rounds = [
        {labels[place]: _as_run(networks[place]) for place in range(first, first + num_folds)}
        for first in range(0, len(networks), num_folds)
    ]
    sizes = [[int((of_round == fold).sum()) for fold in range(num_folds)] for of_round in found.folds]
    monitor = run.params.get("monitor", "val/acc")
    curves = [_curves(store, network, monitor) for network in networks]
    of_rounds = [curves[first : first + num_folds] for first in range(0, len(networks), num_folds)]
    mode = run.params.get("monitor_mode", "max")
    return put_in_numbers(rounds, sizes, of_rounds, mode, found, _test_mean(run, networks))


def _out_of_fold(store: Store, run: RunInfo) -> OutOfFold:
    found = read_out_of_fold(queries.download_artifact(store, run, f"{FOLDER}/{LOGITS}"))
    if found is None:
        reason = f"{FOLDER}/{LOGITS} of {run.name} is not as it was written"
        raise UsageError("run", run.run_id, reason, "train the folds anew")
    return found


def _labels(networks: Sequence[RunInfo]) -> list[str]:
    """Returns what each network is called: as when they were trained."""
    cuts = {network.params.get("data.fold_seed") for network in networks}
    seeds = {network.tags["seed"] for network in networks}
    labels = []
    for network in networks:
        cut = [f"split {network.params['data.fold_seed']}"] if len(cuts) > 1 else []
        seed = [f"seed {network.tags['seed']}"] if len(seeds) > 1 else []
        labels.append(", ".join([*cut, *seed, f"fold {network.tags['fold']}"]))
    return labels


def _as_run(network: RunInfo) -> Run:
    return Run(network.run_id, network.name, network.metrics)


def _curves(store: Store, network: RunInfo, monitor: str) -> Curves:
    """Returns what a network came to after each epoch; see `Curves`."""
    histories = {name: queries.metric_history(store, network, name) for name in {monitor, "val/loss", "val/acc"}}
    return [[value for _, value in histories[name]] for name in (monitor, "val/loss", "val/acc")]


def _test_mean(run: RunInfo, networks: Sequence[RunInfo]) -> tuple[int, int] | None:
    share, num = run.metrics.get("test/acc_of_mean"), num_images(networks[0], "test")
    return None if share is None or num is None else (round(share * num), num)


def num_images(run: RunInfo, split: str) -> int | None:
    """Returns how many images of a split a run's figures are of; None if it does not say."""
    _, of, number = run.tags.get(f"{split}_interval", "").partition("] of ")
    return int(number.replace(",", "")) if of else None
