"""`lit-cnn distill`: trains one network on what the networks of an ensemble say together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lit_cnn.cli.verbs import CommandParser
from lit_cnn.core.errors import UsageError

if TYPE_CHECKING:
    from lit_cnn.tracking.run import Run
    from lit_cnn.tracking.store import Store


def distill(arguments: list[str]) -> int:
    """`lit-cnn fit` with teachers: takes its options, and makes a run like any other."""
    parser = CommandParser(
        prog="lit-cnn distill",
        description="Train a student on the mean probabilities of trained networks, for the same augmented images. "
        "Takes the options of lit-cnn fit, and --model.temperature (4) and --model.alpha (0.9), the weight of what the "
        "teachers say; the labels have the rest.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--teachers",
        nargs="+",
        metavar="ID",
        required=True,
        help="MLflow run ids (or our keys) of the teachers; that of a lit-cnn ensemble stands for its members",
    )
    options, of_fit = parser.parse_known_args(arguments)

    from lit_cnn.cli.precheck import precheck, take_seeds
    from lit_cnn.cli.shorthand import expand

    seeds, of_fit = take_seeds(of_fit)
    of_fit = expand("distill", of_fit)
    precheck(of_fit, parser.options)
    from lit_cnn.cli.train import run_trainer_command
    from lit_cnn.training.distillation import Distillation

    return run_trainer_command("fit", with_teachers(options.teachers, of_fit), seeds, Distillation)


def with_teachers(teachers: "Sequence[Run | str]", arguments: Sequence[str]) -> list[str]:
    """Returns options of `lit-cnn fit` with those that make a `Distillation` of the run.

    Args:
        teachers: Runs or their ids; that of an ensemble stands for its members.
        arguments: Options of `lit-cnn fit`.

    Raises:
        UsageError: If one is not there, or is no network or plain mean of networks.
    """
    from lit_cnn.cli.precheck import value_of
    from lit_cnn.tracking import resolve_store

    addresses = _addresses(resolve_store(value_of(arguments, "tracking_uri")), teachers)
    return ["--recipe=student", f"--model.teachers=[{', '.join(addresses)}]", *arguments]


def _addresses(store: "Store", teachers: "Sequence[Run | str]") -> list[str]:
    """Returns `runs:/RUN_ID` of each teacher, with whole ids: the same run however it was named."""
    from lit_cnn.evaluation.members import KINDS, find_networks
    from lit_cnn.tracking.run import id_of

    names = [id_of(teacher) for teacher in teachers]
    found: list[str] = []
    for name in names:
        for run in find_networks(store, [name]):
            kind = run.tags.get("kind")
            if kind == "ensemble" and (run.params.get("combine") != "mean" or "weights" in run.params):
                reason = f"{run.name} is no plain mean of probabilities"
                raise UsageError("teachers", name, reason, f"name its members: {run.tags['members']}")
            if kind not in (*KINDS, "ensemble"):
                raise UsageError("teachers", name, f"{run.name} is no training run", "give runs of lit-cnn fit")
            found += run.tags["members"].split() if kind == "ensemble" else [run.run_id]
    if len(set(found)) < len(found):
        raise UsageError("teachers", names, "a network is named twice", "name each once")
    return [f"runs:/{run_id}" for run_id in found]
