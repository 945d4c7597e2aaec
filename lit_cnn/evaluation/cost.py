"""What a way to classify costs: forward passes, multiply-adds and parameters; and, measured, time."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from lit_cnn.core.machine import machine_name
from lit_cnn.models.describe import measure
from lit_cnn.training.classifier import LitClassifier

BATCHES = (1, 32)
"""Images at a time for which latency is measured."""

LARGEST_PASS = 64
"""Views in one timed forward pass at most; what is more goes in several."""

_WARM_UP = 3  # rounds
_LEAST_ROUNDS, _MOST_ROUNDS = 3, 100
_SECONDS = 3.0  # for each size of a pass


@dataclass(frozen=True)
class Network:
    """What one network costs.

    Attributes:
        parameters: Numbers in its parameters, side branches included.
        multiply_adds: For one view; see `lit_cnn.models.describe`.
    """

    parameters: int
    multiply_adds: int


@dataclass(frozen=True, eq=False)
class Timing:
    """Forward passes that were timed.

    Attributes:
        seconds: Views in a pass -> `(R, M)` float64, R rounds in each of which all M networks had one pass in turn.
        machine: On what, with how many threads.
    """

    seconds: Mapping[int, np.ndarray]
    machine: str


class Latency(NamedTuple):
    """Seconds that a number of images take: median and 95th percentile of so many rounds."""

    median: float
    p95: float
    num_rounds: int


@dataclass(frozen=True)
class Cost:
    """What a row of the table costs.

    Attributes:
        parameters: Of all networks that are run.
        multiply_adds: For one image, over all networks and views.
        latency: By images at a time (`BATCHES`); empty if it was not measured.
        machine: On which it was measured.
    """

    parameters: int
    multiply_adds: int
    latency: Mapping[int, Latency] = field(default_factory=dict)
    machine: str = ""


def network_of(model: LitClassifier) -> Network:
    """Counts parameters and multiply-adds of a classifier's network; it is sent one image."""
    shape = (1, model.hparams["in_channels"], *2 * (model.hparams["image_size"],))
    layers = measure(model.net, torch.zeros(shape, device=model.device))
    return Network(sum(layer.parameters for layer in layers), sum(layer.multiply_adds for layer in layers))


def passes_needed(num_views: int, num_images: int) -> tuple[int, float]:
    """Returns the views in one pass, and how many such passes so many images take; the last may be a part of one."""
    views = num_views * num_images
    return min(views, LARGEST_PASS), views / min(views, LARGEST_PASS)


def time_networks(models: Sequence[LitClassifier], view_counts: Sequence[int]) -> Timing:
    """Times forward passes from uint8 views in memory to logits, in float32 and with the threads that torch has.

    The networks are cycled through, so that other load slows all of them. After 3 rounds of warm-up come
    100, or as many as fit into 3 seconds, but at least 3, for each size of a pass.

    Args:
        models: M classifiers in evaluation mode, all on one device.
        view_counts: Numbers of views that are to be priced with `cost_of`.
    """
    sizes = sorted({passes_needed(count, batch)[0] for count in view_counts for batch in BATCHES})
    return Timing({size: _rounds(models, size) for size in sizes}, machine_name(models[0].device))


def cost_of(networks: Sequence[Network], used: np.ndarray, num_views: int, timing: Timing | None = None) -> Cost:
    """Adds up what some of the networks cost with so many views.

    Networks run one after the other: in each round the seconds of those that are used are added, then the median and
    the 95th percentile are taken over the rounds. Views of the same images share a pass, `LARGEST_PASS` at most;
    where one image or 32 take several passes, one of them was timed and is multiplied.

    Args:
        networks: Of all M members.
        used: `(n,)` int, the members that are run.
        num_views: V, views of each image.
        timing: Of all M members, if they were timed.
    """
    run = [networks[member] for member in used]
    latency = {}
    for batch in BATCHES if timing is not None else ():
        assert timing is not None
        size, num_passes = passes_needed(num_views, batch)
        seconds = timing.seconds[size][:, used].sum(axis=1) * num_passes
        latency[batch] = Latency(float(np.median(seconds)), float(np.quantile(seconds, 0.95)), len(seconds))
    return Cost(
        sum(network.parameters for network in run),
        sum(network.multiply_adds for network in run) * num_views,
        latency,
        timing.machine if timing is not None else "",
    )


def _rounds(models: Sequence[LitClassifier], size: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    views = [
        torch.randint(
            256, (size, hparams["in_channels"], *2 * (hparams["image_size"],)), dtype=torch.uint8, generator=generator
        ).to(models[0].device)
        for hparams in (model.hparams for model in models)
    ]
    rounds: list[list[float]] = []
    end = math.inf
    with torch.inference_mode():
        for number in range(-_WARM_UP, _MOST_ROUNDS):
            if number == 0:
                end = time.perf_counter() + _SECONDS
            if number >= _LEAST_ROUNDS and time.perf_counter() > end:
                break
            seconds = [_one_pass(model, own) for model, own in zip(models, views, strict=True)]
            if number >= 0:
                rounds.append(seconds)
    return np.array(rounds)


def _one_pass(model: LitClassifier, views: torch.Tensor) -> float:
    _wait_for(model.device)
    start = time.perf_counter()
    model(views)
    _wait_for(model.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    # A GPU is given its work and computes on.
    if device.type == "cuda":
        torch.cuda.synchronize(device)
