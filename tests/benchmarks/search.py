"""`make bench NAME=search`: what a search finds in how much time, by `lit-cnn tune` and by others on the same space.

LeNet-5 on 10,000 images of Fashion-MNIST (2,000 of val) or on the digits, not augmented; learning rate, weight decay,
batch size and label smoothing. Each side in turn, alone, two trials at once where it can:

- `random`: `lit-cnn tune`, 30 random draws, none pruned;
- `tpe, asha`: `lit-cnn tune`, 30 draws of TPE, pruned by ASHA;
- `tpe, asha, same time`: the same, with as many trials as the time of `random` allows;
- `a process a trial`: plain Optuna by hand, 30 random draws, each a `lit-cnn fit`: what differs from `random` is that a
  worker of `tune` imports once;
- `keras_tuner`: KerasTuner's RandomSearch, 30 draws in one process, the same network and schedule in Keras, in an
  environment of its own (`--make_environment`).

What a process a trial costs is its start, so the ratio is larger for short trials: `--set digits --epochs 15`.

The winner of each is trained with five new seeds and tested: its val accuracy less their mean is the optimism. Trials
an hour are of the search alone, its start and its report included, not the new seeds.

cvic (1.2.4, Python 3.12) is not among them: its space is its own nine options, its networks are timm's.

What a side came to is a line in `build/search/parts.jsonl`; the same command goes on where it was stopped. `--rounds 3`
repeats all with other draws.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from rich.console import Console
from rich.table import Table

from lit_cnn.cli.fit_config import train_missing
from lit_cnn.core.environment import set_environment
from lit_cnn.data.datamodule import ImageDataModule
from lit_cnn.evaluation.arms import Arm, finished_runs
from lit_cnn.evaluation.statistics import mean_std, paired_difference
from tests.benchmarks.common import ROOT, Parts, save_result

AIM = 1.5
NEW_SEEDS = range(1, 6)
RANDOM, BY_HAND, KERAS = "random", "a process a trial", "keras_tuner"
_SPACE = """\
model.lr: {low: 0.0001, high: 0.1, log: true}
model.weight_decay: {low: 0.0001, high: 0.3, log: true}
model.label_smoothing: {low: 0.0, high: 0.2}
data.batch_size: [32, 64, 128, 256]
"""
# Of a set: its configuration, and what else is said of it.
_SETS: dict[str, tuple[str, dict[str, Any]]] = {
    "fashion_mnist": (
        "lenet5_scratch_fashion_mnist",
        {"data.limit_train": 10_000, "data.val_fraction": 0.0333, "data.augment": []},
    ),
    "digits": ("lenet5_scratch_digits", {"data.augment": []}),
}
_COLUMNS = ("", "trials", "pruned", "seconds", "trials an hour", "best val %", "new seeds %", "optimism", "test %")
_PACKAGES = ("keras-tuner==1.4.8", "keras==3.15.1", "tensorflow-cpu==2.21.0", "tensorboard==2.21.0")


def main() -> None:
    """Runs the sides that are missing, prints a table, writes the figures."""
    options = _options()
    os.environ["PYTHONPATH"] = str(ROOT)
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    python = options.environments / KERAS / "bin" / "python"
    if options.make_environment:
        _make_environment(python)
        return
    set_environment()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parts = Parts(Path("parts.jsonl"))
    Path("space.yaml").write_text(_SPACE, encoding="utf-8")
    rounds = []
    for seed in range(options.rounds):
        rounds.append(_round(options, seed, parts, python))
        _print(options, rounds)
    save_result("search", {"set": options.set, "aim": AIM, "rounds": rounds})


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=_SETS, default="fashion_mnist")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--parallel", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "search")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "search" / "environments")
    parser.add_argument("--make_environment", action="store_true", help="install KerasTuner, and end")
    return parser.parse_args()


def _make_environment(python: Path) -> None:
    venv.create(python.parents[1], with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *_PACKAGES], check=True)


def _round(options: argparse.Namespace, seed: int, parts: Parts, python: Path) -> dict[str, dict[str, Any]]:
    """Returns what each side came to with one seed of the draws; runs what is missing."""
    asha = ("--sampler=tpe", "--pruner=asha")

    def in_the_time_of_random() -> dict[str, Any]:
        """Has as many trials as there is time for."""
        seconds = found[RANDOM]["seconds_of_trials"]
        return tune(options, seed, *asha, "--trials=1000", f"--budget={seconds:.0f}s")

    sides: dict[str, Callable[[], dict[str, Any]]] = {
        RANDOM: partial(tune, options, seed, "--sampler=random", "--pruner=none", f"--trials={options.trials}"),
        "tpe, asha": partial(tune, options, seed, *asha, f"--trials={options.trials}"),
        "tpe, asha, same time": in_the_time_of_random,
        BY_HAND: partial(process_a_trial, options, seed),
        KERAS: partial(keras_tuner, options, seed, python),
    }
    found = dict[str, dict[str, Any]]()
    for name, run in sides.items():
        part = f"{options.set} {options.trials}x{options.epochs} {options.parallel} {seed} {name}"
        done = parts.found.get(part)
        if done is None:
            print(f"{part}: begins", flush=True)
            try:
                done = parts.add(part, **run())
            except (OSError, subprocess.CalledProcessError) as error:
                if name == RANDOM:
                    raise
                done = parts.add(part, error=_why(error))
        if "error" not in done and "test" not in done:
            done = parts.add(part, **done | new_seeds(options, f"{seed}_{name}", done["values"]))
        print(f"{part}: {_in_words(done)}", flush=True)
        found[name] = done
    return found


def _why(error: Exception) -> str:
    said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
    return said[-1][-300:] if said else str(error)


def tune(options: argparse.Namespace, seed: int, *how: str) -> dict[str, Any]:
    """Returns what `lit-cnn tune` finds: all of the command is clocked, its start and its report included."""
    began = time.monotonic()
    own = [f"--parallel={options.parallel}", f"--seed={seed}", "--final_seeds=0", "--search=space.yaml", *how]
    _lit_cnn(["tune", *_arguments(options), *own, "--experiment=search", "--output=report"])
    seconds = time.monotonic() - began
    found = json.loads(Path("report/trials.json").read_text(encoding="utf-8"))
    rows = found["trials"]
    (best,) = (row["value"] for row in rows if row["is_best"])
    states = [row["state"] for row in rows]
    figures = _figures(seconds, found["best"], best, {state: states.count(state) for state in sorted(set(states))})
    return figures | {"seconds_of_trials": max(row["elapsed"] for row in rows if row["elapsed"] is not None)}


def process_a_trial(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Returns what a study by hand finds, each trial a `lit-cnn fit` of its own."""
    began = time.monotonic()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed), direction="maximize")

    def trial(number: int) -> None:
        """Trains one."""
        drawn = study.ask()
        values = {
            "model.lr": drawn.suggest_float("model.lr", 1e-4, 0.1, log=True),
            "model.weight_decay": drawn.suggest_float("model.weight_decay", 1e-4, 0.3, log=True),
            "model.label_smoothing": drawn.suggest_float("model.label_smoothing", 0.0, 0.2),
            "data.batch_size": drawn.suggest_categorical("data.batch_size", [32, 64, 128, 256]),
        }
        recipe = f"hand_{seed}_{number}_{int(began)}"
        own = [*(f"--{name}={value}" for name, value in values.items()), f"--recipe={recipe}"]
        own += ["--test_after_fit=false", "--report=false", "--experiment=by_hand"]
        # Each its share of the cores, as the workers of `tune` have.
        threads = max(1, len(os.sched_getaffinity(0)) // options.parallel)
        _lit_cnn(["fit", *_arguments(options), *own], OMP_NUM_THREADS=str(threads))
        (run,) = finished_runs(Arm("", _run_name(options, recipe), ()), "by_hand").values()
        study.tell(drawn, run.metrics["best/val/acc"])

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(trial, range(options.trials)))
    return _figures(time.monotonic() - began, study.best_params, study.best_value, {"complete": options.trials})


def keras_tuner(options: argparse.Namespace, seed: int, python: Path) -> dict[str, Any]:
    """Returns what KerasTuner finds, and its winner with new seeds."""
    images = Path(f"{options.set}.npz")
    if not images.exists():
        _write_images(options, images)
    command = [str(python), "-m", "tests.benchmarks.peers.keras_tuner_search", str(images), "keras_tuner.json"]
    own = {"trials": options.trials, "epochs": options.epochs, "seed": seed, "new_seeds": max(NEW_SEEDS)}
    arguments = [*command, *(f"--{name}={value}" for name, value in own.items())]
    subprocess.run(arguments, check=True, capture_output=True)
    found: dict[str, Any] = json.loads(Path("keras_tuner.json").read_text(encoding="utf-8"))
    more = {name: found[name] for name in ("new", "test", "versions")}
    return _figures(found["seconds"], found["values"], found["best"], {"complete": options.trials}) | more


def _figures(seconds: float, values: Mapping[str, Any], best: float, states: Mapping[str, int]) -> dict[str, Any]:
    trials = sum(states.values())
    rate = 3600 * trials / seconds
    return {"seconds": seconds, "trials_an_hour": rate, "states": states, "values": dict(values), "best": best}


def new_seeds(options: argparse.Namespace, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the accuracies of a winner with new seeds, on val and on test; runs that are there are not repeated."""
    config, of_set = _SETS[options.set]
    recipe = f"{name}_{options.trials}x{options.epochs}_{options.parallel}".replace(", ", "_").replace(" ", "_")
    given = {**of_set, **_common(options), **values, "recipe": recipe}
    arm = Arm(name, _run_name(options, recipe), [config], given)
    train_missing([arm], "new_seeds", list(NEW_SEEDS))
    runs = finished_runs(arm, "new_seeds")
    return {
        "new": [runs[seed].metrics["best/val/acc"] for seed in NEW_SEEDS],
        "test": [runs[seed].metrics["test/acc"] for seed in NEW_SEEDS],
    }


def _common(options: argparse.Namespace) -> dict[str, Any]:
    return {"trainer.max_epochs": options.epochs, "data.num_workers": 0}


def _arguments(options: argparse.Namespace) -> list[str]:
    config, of_set = _SETS[options.set]
    return [f"--config={config}", *(f"--{name}={value}" for name, value in {**of_set, **_common(options)}.items())]


def _run_name(options: argparse.Namespace, recipe: str) -> str:
    return f"lenet5_scratch_{options.set}_{recipe}"


def _lit_cnn(command: Sequence[str], **variables: str) -> None:
    environment = {**os.environ, **variables}
    subprocess.run([sys.executable, "-m", "lit_cnn", *command], env=environment, check=True, capture_output=True)


def _write_images(options: argparse.Namespace, file: Path) -> None:
    """Writes the images of the splits that all sides have, `(N, H, W)` uint8."""
    given = {name.removeprefix("data."): value for name, value in _SETS[options.set][1].items()}
    data = ImageDataModule(options.set, **given)
    arrays: dict[str, Any] = {}
    for split in ("train", "val", "test"):
        places = getattr(data.splits, split)
        arrays[f"{split}_images"] = np.stack([np.squeeze(data.image_set.images[int(place)]) for place in places])
        arrays[f"{split}_labels"] = data.image_set.labels[places]
    np.savez(file, **arrays)


def _optimism(side: Mapping[str, Any]) -> tuple[float, float, float]:
    return tuple(100 * each for each in paired_difference([side["best"]] * len(side["new"]), side["new"]))  # type: ignore[return-value]


def _in_words(side: Mapping[str, Any]) -> str:
    if "error" in side:
        return str(side["error"])
    new = f"new seeds {100 * statistics.mean(side['new']):.2f} %"
    test = f"test {100 * statistics.mean(side['test']):.2f} %"
    return f"{side['seconds']:.0f} s, best {100 * side['best']:.2f} %, {new}, {test}"


def _print(options: argparse.Namespace, rounds: Sequence[Mapping[str, Mapping[str, Any]]]) -> None:
    table = Table(title=f"{options.set}, {options.epochs} epochs, {options.parallel} at once, round by round")
    for column in _COLUMNS:
        table.add_column(column)
    for number, name in itertools.product(range(len(rounds)), rounds[0]):
        side = rounds[number][name]
        if "error" in side:
            table.add_row(name, side["error"])
            continue
        states = side["states"]
        mean, low, high = _optimism(side)
        new, test = (mean_std([100 * value for value in side[key]]) for key in ("new", "test"))
        table.add_row(
            *(name, str(sum(states.values())), str(states.get("pruned", 0)), f"{side['seconds']:.0f}"),
            *(f"{side['trials_an_hour']:.0f}", f"{100 * side['best']:.2f}", f"{new.mean:.2f} ± {new.std:.2f}"),
            *(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", f"{test.mean:.2f} ± {test.std:.2f}"),
        )
    Console(width=140).print(table)
    for other in (BY_HAND, KERAS):
        pairs = [(each[RANDOM], each[other]) for each in rounds if "error" not in each[other]]
        if pairs:
            ratios = [ours["trials_an_hour"] / theirs["trials_an_hour"] for ours, theirs in pairs]
            print(f"trials an hour, {RANDOM} / {other}: {statistics.median(ratios):.2f}; aim {AIM}")


if __name__ == "__main__":
    main()
