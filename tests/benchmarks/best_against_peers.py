"""`make bench NAME=best_against_peers`: `lit-cnn best` against other tools, with the same minutes, cores and weights.

Every tool gets a folder of classes, a budget and the cores that `--cores` says, and predicts test images that lie in
another folder; all start from the same ImageNet weights (`tests/benchmarks/peers/weights.py`). How each is used stands
in its script in `tests/benchmarks/peers`: AutoGluon's MultiModalPredictor, autotimm's AutoTrainer, fastai's usual
recipe, each in an environment of its own. The sets are in `tests/benchmarks/peers/image_sets.py`. The budget is for
what makes the classifier; the predictions come after it, and their time is told.

    python -m tests.benchmarks.best_against_peers --make_environments
    python -m tests.benchmarks.best_against_peers --minutes 15 --repeats 5
    python -m tests.benchmarks.best_against_peers --minutes 60 --repeats 5 --sets photographs

A job is a tool on a set with a seed. `--cores 0 1` runs two at once, each on a core; `--cores 0,1` one after the other,
each on both. What a job came to is a line in `build/best_against_peers/parts.jsonl`: the same command goes on where it
was stopped. A tool that fails is told and the others go on; `--retry` tries it again. `--show` only prints the tables.
Differences are lit-cnn's mean over the repeats less the other's, on the same test images, with the paired bootstrap's
95 % interval over images; the standard deviation over repeats is told.
"""

import argparse
import queue
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_cnn.core.words import duration
from lit_cnn.evaluation.statistics import mean_std, paired_mean_difference
from tests.benchmarks.common import ROOT, Parts, save_result
from tests.benchmarks.peers.image_sets import SETS, num_images, write_set
from tests.benchmarks.peers.tools import OURS, TOOLS, Job, Runner, make_environment, python_of
from tests.benchmarks.peers.weights import write_cache

_COLUMNS = ("tool", "n", "test %", "difference [95 %]", "p", "to fit, s", "to predict, s", "failed")


def main() -> None:
    """Runs what is missing, prints a table for each set and budget, writes the figures."""
    options = _options()
    environments = options.environments or options.folder / "environments"
    if options.make_environments:
        for tool in options.tools:
            _make(tool, environments)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = Parts(options.folder / "parts.jsonl")
    if not options.show:
        _run(options, environments, parts)
    figures = _figures(options.folder, parts)
    _print(figures)
    save_result("best_against_peers", figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--cores", nargs="+", default=["0", "1"], help="of each job that runs at once, as taskset -c")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "best_against_peers")
    parser.add_argument("--environments", type=Path, help="default: environments, in the folder")
    parser.add_argument("--make_environments", action="store_true", help="install the tools, and end")
    parser.add_argument("--retry", action="store_true", help="try again what failed")
    parser.add_argument("--show", action="store_true", help="run nothing")
    return parser.parse_args()


def _make(tool: str, environments: Path) -> None:
    try:
        make_environment(tool, environments)
    except subprocess.CalledProcessError as error:
        print(f"{tool}: {error}", file=sys.stderr)
    else:
        print(f"{tool}: {python_of(tool, environments)}")


def _run(options: argparse.Namespace, environments: Path, parts: Parts) -> None:
    write_cache(options.folder / "weights")
    for subject in options.sets:
        print(subject, num_images(write_set(subject, options.folder / "sets" / subject)), flush=True)
    jobs = _jobs(options, environments, parts)
    runner, slots, left = Runner(options.folder, environments), queue.SimpleQueue[str](), _Left(len(jobs), options)
    for cores in options.cores:
        slots.put(cores)

    def run(job: Job) -> None:
        """Runs one."""
        cores = slots.get()
        left.say(job, "begins")
        found = runner.run(job, cores)
        if left.is_stopped:
            return  # it was ended in the midst of its work
        parts.add(job.name, **vars(job), **found)
        slots.put(cores)
        accuracy = f"{100 * found['accuracy']:.2f} %" if "accuracy" in found else found["error"]
        left.ended()
        left.say(job, f"{accuracy}, {found['wall_seconds']:.0f} s")

    with ThreadPoolExecutor(len(options.cores)) as pool:
        try:
            for future in [pool.submit(run, job) for job in jobs]:
                future.result()
        except BaseException:
            left.is_stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            runner.stop()
            raise


def _jobs(options: argparse.Namespace, environments: Path, parts: Parts) -> list[Job]:
    """Returns what is missing; the tools alternate, and another one begins in each repeat."""
    tools = []
    for tool in options.tools:
        if python_of(tool, environments).exists():
            tools.append(tool)
        else:
            print(f"{tool}: left out; there is no {python_of(tool, environments)}: --make_environments", flush=True)
    jobs = []
    for repeat in range(options.repeats):
        for subject in options.sets:
            for place in range(len(tools)):
                tool = tools[(place + repeat) % len(tools)]
                job = Job(tool, subject, options.minutes, repeat, 1 + options.cores[0].count(","))
                done = parts.found.get(job.name)
                if done is None or (options.retry and "error" in done):
                    jobs.append(job)
    return jobs


class _Left:
    """Says what happens, and how long it will go on."""

    def __init__(self, count: int, options: argparse.Namespace) -> None:
        self.is_stopped = False
        self._count, self._done, self._at_once = count, 0, len(options.cores)
        self._began, self._of_one = time.monotonic(), 60 * options.minutes
        self._lock = threading.Lock()

    def ended(self) -> None:
        """Counts one."""
        with self._lock:
            self._done += 1
            self._of_one = (time.monotonic() - self._began) * min(self._at_once, self._done) / self._done

    def say(self, job: Job, what: str) -> None:
        """Prints a line."""
        seconds = round(self._of_one * (self._count - self._done) / self._at_once)
        print(f"[{self._done}/{self._count}] {job.name}: {what}; about {duration(seconds)} left", flush=True)


def _figures(folder: Path, parts: Parts) -> list[dict[str, Any]]:
    """Returns a line for each set, budget and tool that has run."""
    groups: dict[tuple[str, float, int], dict[str, list[dict[str, Any]]]] = {}
    for part in parts.found.values():
        of_group = groups.setdefault((part["subject"], part["minutes"], part["cores"]), {})
        of_group.setdefault(part["tool"], []).append(part)
    figures = []
    for (subject, minutes, cores), tools in sorted(groups.items()):
        about = {"set": subject, **num_images(folder / "sets" / subject), "minutes": minutes, "cores": cores}
        for tool in (each for each in TOOLS if each in tools):
            figures.append({**about, "tool": tool, **_of_tool(tools[tool], tools.get(OURS, []))})
    return figures


def _of_tool(jobs: list[dict[str, Any]], ours: list[dict[str, Any]]) -> dict[str, Any]:
    done = sorted((job for job in jobs if "accuracy" in job), key=lambda job: int(job["repeat"]))
    figures: dict[str, Any] = {
        "repeats": [job["repeat"] for job in done],
        "accuracies": [job["accuracy"] for job in done],
        "fit_seconds": [job["seconds"]["fit"] for job in done],
        "predict_seconds": [job["seconds"]["predict"] for job in done],
        "errors": [job["error"] for job in jobs if "error" in job],
        "versions": done[-1]["versions"] if done else None,
        "weights": sorted({job["weights"] for job in done}),
    }
    of_ours = [job for job in ours if "accuracy" in job]
    if done and of_ours and done[0]["tool"] != OURS:
        interval, p_value = paired_mean_difference(_correct(of_ours), _correct(done))
        figures |= {"ours_minus_this": list(interval), "p": p_value}
    return figures


def _correct(jobs: list[dict[str, Any]]) -> np.ndarray:
    return np.array([[character == "1" for character in job["correct"]] for job in jobs])


def _print(figures: list[dict[str, Any]]) -> None:
    for first in figures:
        if first["tool"] != next(iter(each["tool"] for each in figures if _group(each) == _group(first))):
            continue
        table = Table(
            title=f"{first['set']}: {first['classes']} classes, {first['pool']:,} images, {first['test']:,} of test; "
            f"{first['minutes']:g} minutes, {first['cores']} core{'s' * (first['cores'] > 1)}"
        )
        for column in _COLUMNS:
            table.add_column(column)
        for line in (each for each in figures if _group(each) == _group(first)):
            table.add_row(*_cells(line))
        Console(width=120).print(table)
    weights = {each for line in figures for each in line["weights"]}
    print(f"started from {len(weights)} kind{'s' * (len(weights) != 1)} of weights: {', '.join(sorted(weights))}")
    for line in figures:
        for error in line["errors"]:
            print(f"{line['set']}, {line['tool']}: {error}")


def _group(line: dict[str, Any]) -> tuple[Any, ...]:
    return line["set"], line["minutes"], line["cores"]


def _cells(line: dict[str, Any]) -> list[str]:
    count, failed = str(len(line["accuracies"])), str(len(line["errors"]) or "")
    if not line["accuracies"]:
        return [line["tool"], count, "-", "-", "-", "-", "-", failed]
    found = mean_std([100 * each for each in line["accuracies"]])
    spread = f" ± {found.std:.2f}" if found.n > 1 else ""
    difference, p_value = "", ""
    if "ours_minus_this" in line:
        mean, low, high = (100 * each for each in line["ours_minus_this"])
        difference, p_value = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", f"{line['p']:.2g}"
    times = (f"{np.median(line[name]):.0f}" for name in ("fit_seconds", "predict_seconds"))
    return [line["tool"], count, f"{found.mean:.2f}{spread}", difference, p_value, *times, failed]


if __name__ == "__main__":
    main()
