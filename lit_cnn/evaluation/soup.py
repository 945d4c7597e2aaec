"""The weights of several trained networks become those of one, where they lie in one basin."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.special import log_softmax
from torch.optim.swa_utils import update_bn

from lit_cnn import __version__
from lit_cnn.core.errors import UsageError
from lit_cnn.core.intervals import Interval
from lit_cnn.core.words import counted
from lit_cnn.data.splits import Split
from lit_cnn.evaluation.comparison import runs_of
from lit_cnn.evaluation.members import MUST_AGREE, checkpoint_of, find_members, is_fold_set, member_names, refuse_unlike
from lit_cnn.evaluation.predict import LOADING, Loading, Member, ViewImages, forward_batches, load_network, logits_of
from lit_cnn.evaluation.recording import ended
from lit_cnn.evaluation.statistics import paired_bootstrap
from lit_cnn.reports.wording import percent, points_words
from lit_cnn.tracking import Store, check_writable, resolve_store
from lit_cnn.tracking.recorder import Recorder
from lit_cnn.tracking.run import Run
from lit_cnn.tracking.store import BEST, CHECKPOINTS
from lit_cnn.training.checkpoints import digest_of_weights, load_checkpoint, save_checkpoint

MOST_BARRIER = 0.02
"""Accuracy that may be lost between two networks of one basin: below it is noise (Frankle et al. 2020, section 2).

On few images a single one is more: a loss counts only if the images tell it from none, and if the loss rises too.
"""

_SAME = (
    *("arch", "arch_options", "cut_at", "head", "num_classes"),
    *("in_channels", "image_size", "mean", "std", "crop_pct", "pixel_range", "background"),
)
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
        barrier_limits: 95 % paired bootstrap limits of `barrier_acc`; None for the first.
        outcome: What became of it.
        num_val: Images of val.
    """

    run_id: str
    name: str
    val: Score
    barrier_acc: float | None
    barrier_loss: float | None
    outcome: Literal["first", "in the soup", "no gain on val", "another basin"]
    barrier_limits: tuple[float, float] | None = None
    num_val: int = 0

    @property
    def is_used(self) -> bool:
        """Whether its weights are in the soup."""
        return self.outcome in ("first", "in the soup")

    def __str__(self) -> str:
        barrier = ""
        if self.barrier_acc is not None and self.barrier_limits is not None:
            interval = Interval(self.barrier_acc, *self.barrier_limits)
            barrier = f", barrier {points_words(interval, self.num_val)}"
        return f"{self.name}: {percent(self.val.acc, self.num_val)} % on val{barrier}: {self.outcome}"


@dataclass(frozen=True)
class Soup(Run):
    """The run of a soup.

    Attributes:
        ingredients: The networks that were to go into it, best on val first, and what became of each.
        num_test: Images of test.
    """

    ingredients: tuple[Ingredient, ...] = ()
    num_test: int = 0

    def answer(self) -> str:
        """Returns what came of it, against the first network alone."""
        first, size = self.ingredients[0], sum(each.is_used for each in self.ingredients)
        val, test = self.metrics["best/val/acc"], self.metrics["test/acc"]
        n = first.num_val
        gain = f"{percent(val, n)} % on {counted(n, 'val image')}, {first.name} alone {percent(first.val.acc, n)} %"
        return (
            f"A soup of {size} of {len(self.ingredients)} networks: {gain}; {percent(test, self.num_test)} % on "
            f"{counted(self.num_test, 'test image')}."
        )

    def __str__(self) -> str:
        return "\n".join([self.answer(), *(f"  {each}" for each in self.ingredients), f"run {self.id}"])


def soup(runs: Sequence[Run | str], *, loading: Loading = LOADING, tracking_uri: str | None = None) -> Soup:
    """Averages weights greedily, and keeps what comes of it as a run of its own.

    Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time", recipe 1: the networks come in the order of their accuracy on val, and each stays if the
    equal average with it is at least as accurate there. Before that, each must lie in one basin with the first: the
    network halfway between the two may lose `MOST_BARRIER` of their mean accuracy on val (linear mode connectivity,
    Frankle et al. 2020, "Linear mode connectivity and the lottery ticket hypothesis", section 2, at the midpoint); see
    `is_barrier`.
    BatchNorm's statistics are computed anew over the training images for every average, unless all networks have the
    same ones.

    Args:
        runs: Runs, their ids, or names of `members.find_networks`; two networks or more of one architecture.
        loading: How images are read and go through the networks.
        tracking_uri: The MLflow store; see `resolve_store`.

    Returns:
        The soup's run, with what became of each network.

    Raises:
        UsageError: If the networks cannot be averaged, lie in different basins, or no average is as good as the first
            alone; nothing is written then.

    Example:
        >>> soup = lit_cnn.soup([run, tuned])
        >>> print(soup)  # doctest: +ELLIPSIS
        A soup of 2 of 2 networks: ...
    """
    store = resolve_store(tracking_uri)
    check_writable(store)
    found = find_members(store, runs)
    for run in filter(is_fold_set, found):
        remedy = f"an ensemble of it, or of its runs: {run.tags['members']}"
        raise UsageError(
            "runs", run.run_id, f"{run.name} is of networks that were not trained on the same images", remedy
        )
    if len(found) < 2:
        raise UsageError("runs", [run.run_id for run in found], "a soup is of two networks or more", "name others")
    refuse_unlike(found)
    members = [load_network(store, run, ["test", "val"], loading.root) for run in found]
    builder = _SoupBuilder(members, loading)
    ingredients, state = builder.build()
    if sum(each.is_used for each in ingredients) < 2:
        raise _no_soup(ingredients)
    scores = {split: builder.score(state, split) for split in ("val", "test")}
    num_test = len(builder.data.splits.test)
    return _record(store, members, ingredients, state, scores["val"], scores["test"], num_test)


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


class _SoupBuilder:
    """The networks' weights, and one network in which averages of them are tried."""

    def __init__(self, members: Sequence[Member], loading: Loading) -> None:
        self.states = [{name: tensor.clone() for name, tensor in each.model.state_dict().items()} for each in members]
        for member, state in zip(members, self.states, strict=True):
            _refuse_other_shape(members[0], self.states[0], member, state)
        self.runs, self.loading = runs_of(members), loading
        self.model, self.data, self.preprocessing = members[0].model, members[0].data, members[0].record.preprocessing
        self.data.num_workers = loading.num_workers
        statistics = [name for name in self.states[0] if name.endswith(("running_mean", "running_var"))]
        first, *others = self.states
        self.renews_statistics = any(
            not torch.equal(first[name], state[name]) for state in others for name in statistics
        )

    def build(self) -> tuple[list[Ingredient], State]:
        """Returns what became of each network, and the soup."""
        alone = [self.results(state, "val") for state in self.states]
        names = member_names(self.runs)
        scores, num_val = [_score(each) for each in alone], len(alone[0].correct)
        found = [Ingredient(self.runs[0].run_id, names[0], scores[0], None, None, "first", num_val=num_val)]
        places, best, soup = [0], scores[0].acc, self.states[0]
        for place in range(1, len(self.runs)):
            halfway = self.results(self.average([0, place]), "val")
            barrier = paired_bootstrap((alone[0].correct + alone[place].correct.astype(float)) / 2 - halfway.correct)
            barrier_loss = _score(halfway).loss - (scores[0].loss + scores[place].loss) / 2
            tried = Ingredient(
                self.runs[place].run_id,
                names[place],
                scores[place],
                barrier.mean,
                barrier_loss,
                "another basin",
                barrier[1:],
                num_val,
            )
            if not is_barrier(barrier, barrier_loss):
                average = self.average([*places, place])
                accuracy = self.score(average, "val").acc
                tried = replace(tried, outcome="no gain on val")
                if accuracy >= best:
                    places, best, soup = [*places, place], accuracy, average
                    tried = replace(tried, outcome="in the soup")
            found.append(tried)
        return found, soup

    def average(self, places: Sequence[int]) -> State:
        """Returns the equal average of some of the networks, with statistics of its own."""
        if len(places) == 1:
            return self.states[places[0]]
        self.model.load_state_dict(average_of([self.states[place] for place in places]))
        if self.renews_statistics:
            torch.manual_seed(0)  # dropout is on, as in training
            with torch.no_grad():
                update_bn(self.data.plain_train_loader(), self.model, self.model.device)
            self.model.eval()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def score(self, state: State, split: Split) -> Score:
        """Returns what a network comes to on val or test, one view, in float32."""
        return _score(self.results(state, split))

    def results(self, state: State, split: Split) -> "_Results":
        """Returns what a network comes to for each image of val or test."""
        self.model.load_state_dict(state)
        images, indices = self.data.image_set, self.data.splits[split]
        views = ViewImages(images.images, indices, self.preprocessing)
        targets, found, done = images.labels[indices], [], 0
        for batch in forward_batches(logits_of(self.model), views, self.loading, f"soup, {split}"):
            logits = batch[:, 0].numpy()
            own = targets[done : done + len(logits)]
            done += len(logits)
            of_target = log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(own)), own]
            found.append((logits.argmax(axis=1) == own, -of_target))
        correct, losses = map(np.concatenate, zip(*found, strict=True))
        return _Results(correct, losses)


class _Results(NamedTuple):
    """Of N images: `(N,)` bool, whether each is classified correctly; `(N,)` float64, the loss in nats."""

    correct: np.ndarray
    losses: np.ndarray


def is_barrier(accuracy: Interval, loss: float) -> bool:
    """Whether two networks lie in different basins.

    Args:
        accuracy: What the network halfway loses of their mean accuracy, a fraction with its 95 % limits.
        loss: What its loss is above their mean; linear heads on the same features have none, as theirs is convex.
    """
    return accuracy.mean > MOST_BARRIER and accuracy.low > 0 and loss > 0


def _score(results: _Results) -> Score:
    return Score(float(results.correct.mean()), float(results.losses.mean()))


def _no_soup(ingredients: Sequence[Ingredient]) -> UsageError:
    first, *others = ingredients
    elsewhere = [
        f"{each.name} ({100 * (each.barrier_acc or 0):.1f} points lost halfway)"
        for each in others
        if each.outcome == "another basin"
    ]
    if len(elsewhere) == len(others):
        reason = f"no soup can be made: in other basins than {first.name}: {', '.join(elsewhere)}"
        remedy = "take runs that start from the same trained weights, or average their probabilities in an ensemble"
        return UsageError("runs", None, reason, remedy)
    left = f"; in other basins: {', '.join(elsewhere)}" if elsewhere else ""
    reason = f"no average is as accurate on val as {first.name} alone ({first.run_id})"
    return UsageError("runs", None, reason, f"take that{left}")


def _refuse_other_shape(first: Member, first_state: State, member: Member, state: State) -> None:
    differing = [name for name in _SAME if member.model.hparams[name] != first.model.hparams[name]]
    if not differing and {name: tensor.shape for name, tensor in state.items()} != {
        name: tensor.shape for name, tensor in first_state.items()
    }:
        differing = ["shapes of weights"]
    if differing:
        one, other = runs_of([first, member])
        raise UsageError(
            "runs",
            None,
            f"{one.run_id} ({one.name}) and {other.run_id} ({other.name}) differ in their {', '.join(differing)}",
            "a soup averages weights of one architecture, for the same images",
        )


def _record(
    store: Store,
    members: Sequence[Member],
    ingredients: Sequence[Ingredient],
    state: State,
    val: Score,
    test: Score,
    num_test: int,
) -> Soup:
    """Keeps the soup as a run with a checkpoint like that of the first."""
    runs = runs_of(members)
    first, used = runs[0], [each.run_id for each in ingredients if each.is_used]
    checkpoint = load_checkpoint(checkpoint_of(store, first))
    weights = {name: tensor.cpu() for name, tensor in state.items()}
    net = {name.removeprefix("net."): tensor for name, tensor in weights.items() if name.startswith("net.")}
    kept = ("arch", "transfer", "data", "data_digest", "split_digest", "parameters", *MUST_AGREE)
    digest = hashlib.sha256(json.dumps(["soup", *used]).encode()).hexdigest()
    recorder = Recorder(first.experiment_name, store.tracking_uri)
    name = f"{first.tags['arch'].rpartition('/')[2]}_{first.tags['transfer']}_{first.tags['data']}_soup"
    recorder.begin(
        run_name=name,
        params={"most_barrier": MOST_BARRIER, **{f"member.{place}": run_id for place, run_id in enumerate(used)}},
        tags={
            **{tag: first.tags[tag] for tag in kept},
            "kind": "soup",
            "seed": " ".join(run.tags.get("seed", "?") for run in runs if run.run_id in used),
            "members": " ".join(used),
            "config_digest": digest,
            "weights_digest": digest_of_weights(net),
            "lit_cnn_version": __version__,
        },
    )
    record = {**checkpoint["lit_cnn"], "key": recorder.key, "config_digest": digest, "members": used}
    file = recorder.run_folder / BEST
    try:
        save_checkpoint({**checkpoint, "state_dict": weights, "lit_cnn": record}, file)
        recorder.log_artifact(file, CHECKPOINTS)
    except OSError as error:
        recorder.end("FAILED")
        reason = f"{file} cannot be written ({error.strerror})"
        raise UsageError("tracking_uri", None, reason, "make room: lit-cnn gc") from error
    recorder.log_text(json.dumps([asdict(each) for each in ingredients], indent=2) + "\n", "soup.json")
    metrics = {
        "best/val/acc": val.acc,
        "best/val/loss": val.loss,
        "test/acc": test.acc,
        "test/loss": test.loss,
        "soup/size": len(used),
    }
    recorder.log_metrics(metrics)
    made = Soup("", name, metrics, file, ingredients=tuple(ingredients), num_test=num_test)
    recorder.set_tags({"mlflow.note.content": made.answer()})
    run = ended(recorder, name, metrics)
    return replace(made, id=run.id, is_sent=run.is_sent)
