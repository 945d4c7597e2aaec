"""`--model.weights auto`: chosen before anything is built, so that a run records the weights that it started from."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lit_cnn.cli.configs import split_arguments
from lit_cnn.cli.shorthand import chosen, from_scratch
from lit_cnn.core.errors import UsageError
from lit_cnn.training.available_weights import AUTO, available_weights
from lit_cnn.training.record import recorded_config
from lit_cnn.training.resume import config_digest, unfinished_runs

Config = dict[str, Any]


def settle(
    arguments: Sequence[str], parse: Callable[[list[str]], Any], config_of: Callable[[Config], Config]
) -> tuple[list[str], str]:
    """Returns arguments of `lit-cnn fit` with weights that can be had here in the place of `auto`, and why these.

    An unfinished run that is to be resumed keeps its weights, though others may be had by now.

    Args:
        arguments: With the folder spelt out.
        parse: From arguments to their `DataCLI`.
        config_of: From a run's configuration to that of the run that is to be resumed, its parent's say.

    Returns:
        The arguments, and a line for who looks on; "" where the weights were given.

    Raises:
        UsageError: If there are none, and the regime needs some.
    """
    layers, options = split_arguments(arguments)
    if chosen(layers, options, "model", "weights") != AUTO:
        return list(arguments), ""
    arch = chosen(layers, options, "model", "arch", default="lenet5")
    regime = chosen(layers, options, "model", "transfer")
    if regime == "scratch":
        return _with_weights(arguments, None), ""
    resumes = chosen([], options, "resume") == "auto" or chosen([], options, "ckpt_path") == "last"
    begun = next(_begun(arguments, parse, config_of), None) if resumes else None
    if begun is not None:
        weights, why = begun[0], "as the unfinished run"
    else:
        weights, why = available_weights(arch)
    if weights is None and regime not in (None, AUTO):
        raise UsageError("transfer", regime, f"needs weights, and there are none of {arch}: {why}")
    return _with_weights(arguments, weights), why


def _with_weights(arguments: Sequence[str], weights: str | None) -> list[str]:
    found, before = list[str](), ""
    for text in arguments:
        if before == "--model.weights" and text == AUTO:
            found.pop()
        elif text != f"--model.weights={AUTO}":
            found.append(text)
        before = text
    if weights is None:
        return [*from_scratch(found), "--model.weights=null", "--model.transfer=scratch"]
    return [f"--model.weights={weights}", *found]


def _begun(
    arguments: Sequence[str], parse: Callable[[list[str]], Any], config_of: Callable[[Config], Config]
) -> Iterator[tuple[str | None]]:
    """Yields each choice with which an unfinished run of this configuration has begun."""
    for weights in ("pretrained", "offline", None):
        cli = parse(_with_weights(arguments, weights))
        config = config_of(recorded_config(cli.plain_config))
        for run in unfinished_runs(cli.options.store, None, None, needs_checkpoint=False):
            if run.config_digest == config_digest(config, run.digests.get("data", "")):
                yield (weights,)
