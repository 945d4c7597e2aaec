"""`lit-cnn soup`: the weights of several trained networks become those of one, where they lie in one basin."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim.swa_utils import update_bn

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError
from lit_cnn.evaluation.members import MUST_AGREE, checkpoint_of, find_members, member_names, refuse_unlike
from lit_cnn.evaluation.predictions import Member, load_network
from lit_cnn.tracking import Store, check_writable
from lit_cnn.tracking.queries import RunInfo
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.tracking.store import BEST, CHECKPOINTS
from lit_cnn.training.checkpoints import digest_of_weights, load_checkpoint, save_checkpoint

MOST_BARRIER = 0.02
"""Accuracy that may be lost between two networks of one basin: below it is noise (Frankle et al. 2020, section 2)."""

_SAME = ("arch", "arch_options", "cut_at", "head", "num_classes", "in_channels", "image_size", "mean", "std")
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Score:
    """What a network comes to on some images: accuracy in [0, 1], mean cross-entropy in nats."""

    acc: float
    loss: float


@dataclass(frozen=True)
class Ingredient:
    """A network that was to go into the soup.

    Attributes:
        run_id: See `members.find_networks`.
        name: What it is called.
        val: Alone, on val, computed here.
        barrier_acc: Mean accuracy on val of it and the first, minus that of the network halfway; None for the first.
        barrier_loss: Loss on val of the network halfway, minus the mean of both; None for the first.
        verdict: `first`, `in the soup`, `no gain on val` or `another basin`.
    """

    run_id: str
    name: str
    val: Score
    barrier_acc: float | None
    barrier_loss: float | None
    verdict: str


def make_soup(store: Store, run_ids: Sequence[str], num_workers: int = 2, root: Path | None = None) -> str:
    """Averages weights greedily, and keeps what comes of it as a run of its own; prints what became of each network.

    Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", recipe 1: the networks come in the order of their accuracy on val, and each stays if the
    equal average with it is at least as accurate there. Before that, each must lie in one basin with the first: the
    network halfway between the two may lose `MOST_BARRIER` of their mean accuracy on val (linear mode connectivity,
    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", section 2, at the midpoint).
    BatchNorm's statistics are computed anew over the training images for every average, unless all networks have the
    same ones.

    Args:
        store: Where the runs are.
        run_ids: Names of `members.find_networks`; two networks or more of one architecture.
        num_workers: Processes that decode images.
        root: Folder of the images, if it is elsewhere than in training.

    Returns:
        The id of the soup's run.

    Raises:
        UsageError: If the networks cannot be averaged, lie in different basins, or no average is as good as the first
            alone; nothing is written then.
    """
    if num_workers < 0:
        raise UsageError(f"--num_workers {num_workers}: give 0 or more")
    check_writable(store)
    runs = find_members(store, run_ids, None, "", None)
    if len(runs) < 2:
        raise UsageError(f"--runs {' '.join(run_ids)}: a soup is of two networks or more; name others")
    refuse_unlike(runs)
    members = [load_network(store, run, ["test", "val"], root, "--runs") for run in runs]
    for member in members:
        member.data.num_workers = num_workers
    kitchen = _Kitchen(members, runs)
    ingredients, state = _cook(kitchen, runs)
    in_soup = [each for each in ingredients if each.verdict in ("first", "in the soup")]
    for each in ingredients:
        barrier = "" if each.barrier_acc is None else f"  barrier {100 * each.barrier_acc:+.2f} points"
        print(f"{each.name}  val/acc {each.val.acc:.4f}{barrier}  {each.verdict}")
    if len(in_soup) < 2:
        raise UsageError(_why_none(ingredients))
    val, test = kitchen.score(state, "val"), kitchen.score(state, "test")
    run_id = _record(store, runs, ingredients, load_checkpoint(checkpoint_of(store, runs[0])), state, val, test)
    print(f"soup of {len(in_soup)}: val/acc {val.acc:.4f}  test/acc {test.acc:.4f}  run {run_id}")
    return run_id


def average_of(states: Sequence[Mapping[str, torch.Tensor]]) -> State:
    """Returns the equal average of networks' parameters and buffers; whole numbers are the first's.

    Summed in float64: equal numbers stay as they are, bit for bit.
    """
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(tensor.dtype)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in states[0].items()
    }


class _Kitchen:
    """The networks' weights, and one network in which averages of them are tried."""

    def __init__(self, members: Sequence[Member], runs: Sequence[RunInfo]) -> None:
        self.states = [{name: tensor.clone() for name, tensor in each.model.state_dict().items()} for each in members]
        self.model, self.data = members[0].model, members[0].data
        for run, member, state in zip(runs, members, self.states, strict=True):
            _refuse_other_shape(runs[0], members[0], self.states[0], run, member, state)
        statistics = [name for name in self.states[0] if name.endswith(("running_mean", "running_var"))]
        first, *others = self.states
        self.renews_statistics = any(
            not torch.equal(first[name], state[name]) for state in others for name in statistics
        )

    def average(self, places: Sequence[int]) -> State:
        """Returns the equal average of some of the networks, with statistics of its own."""
        if len(places) == 1:
            return self.states[places[0]]
        self.model.load_state_dict(average_of([self.states[place] for place in places]))
        if self.renews_statistics:
            torch.manual_seed(0)  # dropout has a part in them, as in training
            with torch.no_grad():
                update_bn(self.data.plain_train_loader(), self.model, self.model.device)
            self.model.eval()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def score(self, state: State, split: str) -> Score:
        """Returns what a network comes to on val or test, one view, in float32."""
        self.model.load_state_dict(state)
        loader = self.data.val_dataloader() if split == "val" else self.data.test_dataloader()
        count = correct = loss = 0.0
        with torch.inference_mode():
            for images, labels in loader:
                logits, targets = self.model(images.to(self.model.device)).float().cpu(), labels
                count += len(targets)
                correct += float((logits.argmax(1) == targets).sum())
                loss += float(F.cross_entropy(logits.double(), targets, reduction="sum"))
        return Score(correct / count, loss / count)


def _cook(kitchen: _Kitchen, runs: Sequence[RunInfo]) -> tuple[list[Ingredient], State]:
    """Returns what became of each network, and the soup."""
    alone = [kitchen.score(state, "val") for state in kitchen.states]
    names = member_names(runs)
    found = [Ingredient(runs[0].run_id, names[0], alone[0], None, None, "first")]
    places, best, soup = [0], alone[0].acc, kitchen.states[0]
    for place in range(1, len(runs)):
        halfway = kitchen.score(kitchen.average([0, place]), "val")
        barrier = (alone[0].acc + alone[place].acc) / 2 - halfway.acc
        verdict = "another basin"
        if barrier <= MOST_BARRIER:
            tried = kitchen.average([*places, place])
            accuracy = kitchen.score(tried, "val").acc
            verdict = "no gain on val"
            if accuracy >= best:
                places, best, soup, verdict = [*places, place], accuracy, tried, "in the soup"
        barrier_loss = halfway.loss - (alone[0].loss + alone[place].loss) / 2
        found.append(Ingredient(runs[place].run_id, names[place], alone[place], barrier, barrier_loss, verdict))
    return found, soup


def _why_none(ingredients: Sequence[Ingredient]) -> str:
    first, *others = ingredients
    elsewhere = [
        f"{each.name} ({100 * (each.barrier_acc or 0):.1f} points lost halfway)"
        for each in others
        if each.verdict == "another basin"
    ]
    if len(elsewhere) == len(others):
        return (
            f"--runs: no soup can be made: in other basins than {first.name}: {', '.join(elsewhere)}; take runs that "
            "start from the same trained weights (--model.weights), or average their probabilities: lit-cnn ensemble"
        )
    left = f"; in other basins: {', '.join(elsewhere)}" if elsewhere else ""
    return f"--runs: no average is as accurate on val as {first.name} alone ({first.run_id}); take that{left}"


def _refuse_other_shape(
    first_run: RunInfo, first: Member, first_state: State, run: RunInfo, member: Member, state: State
) -> None:
    differing = [name for name in _SAME if member.model.hparams[name] != first.model.hparams[name]]
    if not differing and {name: tensor.shape for name, tensor in state.items()} != {
        name: tensor.shape for name, tensor in first_state.items()
    }:
        differing = ["shapes of weights"]
    if differing:
        raise UsageError(
            f"--runs: {first_run.run_id} ({first_run.name}) and {run.run_id} ({run.name}) differ in their "
            f"{', '.join(differing)}; a soup averages weights of one architecture, for the same images"
        )


def _record(
    store: Store,
    runs: Sequence[RunInfo],
    ingredients: Sequence[Ingredient],
    checkpoint: dict[str, Any],
    state: State,
    val: Score,
    test: Score,
) -> str:
    """Keeps the soup as a run with a checkpoint like that of the first; returns its id."""
    first = runs[0]
    members = [each.run_id for each in ingredients if each.verdict in ("first", "in the soup")]
    weights = {name: tensor.cpu() for name, tensor in state.items()}
    net = {name.removeprefix("net."): tensor for name, tensor in weights.items() if name.startswith("net.")}
    kept = ("arch", "transfer", "data", "data_digest", "split_digest", "parameters", *MUST_AGREE)
    digest = hashlib.sha256(json.dumps(["soup", *members]).encode()).hexdigest()
    recorder = Recorder(first.experiment_name, store.tracking_uri)
    name = f"{first.tags['arch'].rpartition('/')[2]}_{first.tags['transfer']}_{first.tags['data']}_soup"
    recorder.begin(
        run_name=name,
        params={"most_barrier": MOST_BARRIER, **{f"member.{place}": run_id for place, run_id in enumerate(members)}},
        tags={
            **{tag: first.tags[tag] for tag in kept},
            "kind": "soup",
            "seed": " ".join(run.tags.get("seed", "?") for run in runs if run.run_id in members),
            "members": " ".join(members),
            "config_digest": digest,
            "weights_digest": digest_of_weights(net),
            "lit_cnn_version": __version__,
        },
    )
    record = {**checkpoint["lit_cnn"], "key": recorder.key, "config_digest": digest, "members": members}
    file = recorder.run_folder / BEST
    try:
        save_checkpoint({**checkpoint, "state_dict": weights, "lit_cnn": record}, file)
        recorder.log_artifact(file, CHECKPOINTS)
    except OSError as error:
        recorder.end("FAILED")
        raise UsageError(
            f"--tracking_uri: {file} cannot be written ({error.strerror}); make room: lit-cnn gc"
        ) from error
    recorder.log_text(json.dumps([asdict(each) for each in ingredients], indent=2) + "\n", "soup.json")
    recorder.log_metrics(
        {
            "best/val/acc": val.acc,
            "best/val/loss": val.loss,
            "test/acc": test.acc,
            "test/loss": test.loss,
            "soup/size": len(members),
        }
    )
    recorder.end("FINISHED")
    recorder.wait_until_sent(timeout=60)
    return recorder.run_id or recorder.key
