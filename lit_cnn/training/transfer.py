"""Transfer regimes: which stages of a network train, in which epoch, and what stays as it is.

Stages are those of `lit-cnn describe ARCH --stages`. Of the last one the classifier alone is the head, which every
regime trains; what else is in it (VGG's fully connected layers) counts as a stage before it. A regime is a line in
`first_trained_stage` and a file in `configs/transfer/`.
"""

import sys
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torchvision.models.feature_extraction import NodePathTracer

from lit_cnn.core.errors import UsageError
from lit_cnn.models.heads import constant_arguments, tracer_options
from lit_cnn.models.stages import stage_parameters

Regime = Literal["scratch", "head_only", "last_stages", "full", "gradual"]
_DRAWS = ("bernoulli_", "normal_", "uniform_")  # methods of a tensor
_FEW, _SOME = 100, 1000  # images a class: below the first head_only, below the second last_stages, else full


def starting_guess(num_images: int, num_classes: int) -> Regime:
    """Returns the regime that the rule of thumb names: by training images a class few, some or many.

    `lit-cnn advise` measures instead, and begins with it.
    """
    per_class = num_images / num_classes
    return "head_only" if per_class < _FEW else "last_stages" if per_class < _SOME else "full"


def resolve_regime(
    transfer: Regime | Literal["auto"] | None, weights: str | None, class_counts: Sequence[int] | None
) -> Regime:
    """Returns the regime: by default `full` with weights to start from, else `scratch`.

    Args:
        transfer: What is asked for; `auto` is the starting guess for these training images.
        weights: Where the weights come from, if from anywhere.
        class_counts: Training images of each class; only `auto` asks for them.

    Raises:
        UsageError: If `scratch` comes with weights, or any other regime without.
    """
    if transfer == "auto" and weights and class_counts:
        return starting_guess(sum(class_counts), len(class_counts))
    if transfer is None:
        return "full" if weights else "scratch"
    if transfer == "scratch" and weights:
        reason = f"starts from no weights, and `weights` is {weights}"
        raise UsageError("transfer", transfer, reason, "leave one of them out, or give `transfer=full`")
    if transfer != "scratch" and not weights:
        remedy = "give `weights=pretrained`, offline, a file or runs:/RUN_ID, or `transfer=scratch`"
        raise UsageError("transfer", transfer, "needs weights to start from", remedy)
    assert transfer != "auto", "class_counts are linked from the data"
    return transfer


def first_trained_stage(regime: Regime, num_stages: int, train_stages: int, unfreeze_every: int, epoch: int) -> int:
    """Returns the number of the first stage that trains; those after it train too, and so does the head.

    A pure function of the epoch, so a resumed run goes on at the right stage.

    Args:
        regime: The regime.
        num_stages: Stages before the head; this number itself means that the head alone trains.
        train_stages: How many train in `last_stages`.
        unfreeze_every: Epochs from one stage to the next in `gradual`, which begins with the head alone (Howard and
            Ruder 2018, "Universal language model fine-tuning", section 3.3).
        epoch: From 0.
    """
    if regime == "head_only":
        return num_stages
    if regime == "last_stages":
        return num_stages - train_stages
    if regime == "gradual":
        return max(0, num_stages - epoch // unfreeze_every)
    return 0


def split_head(net: nn.Module) -> tuple[list[list[str]], list[str]]:
    """Returns the names of the parameters of each stage before the head, and those of the head.

    Side branches are in neither: they are there to train the stages before them, all of them.

    Raises:
        ValueError: If the network is not made to be split into stages.
    """
    contract: Any = net
    *stages, last = stage_parameters(net)
    classifier = contract.get_classifier()
    # A network with two classifiers (distilled ones) gives them as a tuple: then the last stage is the head.
    own = set(classifier.parameters()) if isinstance(classifier, nn.Module) else set(net.parameters())
    parameters = dict(net.named_parameters())
    head = [name for name in last if parameters[name] in own]
    rest = [name for name in last if parameters[name] not in own]
    if getattr(net, "aux_weights", ()):
        return stages, head
    if rest and stages and all(parameters[name].ndim <= 1 for name in rest):
        # A norm before the classifier is no stage of its own: it belongs to what it normalises.
        stages[-1] = stages[-1] + rest
    elif rest:
        stages.append(rest)
    return stages, head


class Freezer:
    """Keeps a network's frozen stages as they are: no gradients, and evaluation mode, BatchNorm and dropout included.

    Args:
        net: The network with timm's contract; one that trains as a whole need not have it.
        arch: Its name, for messages.
        regime: The regime.
        train_stages: See `first_trained_stage`.
        unfreeze_every: See `first_trained_stage`.

    Attributes:
        head: Names of the head's parameters.

    Raises:
        UsageError: If a number is out of range, the network cannot be split into stages, or nothing would train.
    """

    def __init__(self, net: nn.Module, arch: str, regime: Regime, train_stages: int, unfreeze_every: int) -> None:
        if unfreeze_every < 1:
            raise UsageError("unfreeze_every", unfreeze_every, "give 1 epoch or more")
        self.regime = regime
        self._net = net
        self._numbers = (train_stages, unfreeze_every)
        try:
            self._stages, self.head = split_head(net)
        except ValueError as error:
            if self.freezes:
                raise UsageError("transfer", regime, f"{arch} {error}", "give full") from error
            self._stages, self.head = [], []
        count = len(self._stages)
        if regime == "last_stages" and not 1 <= train_stages < count:
            reason = f"{arch} has {count} stages before its head (lit-cnn describe {arch} --stages)"
            remedy = f"give 1 to {count - 1}, or `transfer=full` for all"
            raise UsageError("train_stages", train_stages, reason, remedy)
        if regime == "head_only" and not self.head:
            reason = f"leaves nothing to train, as the last layer of {arch} has no weights"
            raise UsageError("transfer", regime, reason, "give last_stages")
        self._first: int | None = None
        self._held: list[nn.Module] = []
        self.begin_epoch(0)

    @property
    def freezes(self) -> bool:
        """Whether anything is frozen, in any epoch."""
        return self.regime not in ("scratch", "full")

    def begin_epoch(self, epoch: int) -> bool:
        """Freezes what does not train in an epoch; returns whether that is other than before.

        Whoever calls it then puts the network into train mode anew.
        """
        first = first_trained_stage(self.regime, len(self._stages), *self._numbers, epoch)
        if first == self._first or not self.freezes:
            return False
        self._first = first
        trained = {*self.head, *(name for stage in self._stages[first:] for name in stage)}
        for name, parameter in self._net.named_parameters():
            parameter.requires_grad_(name in trained)
        self._held = list(_modules_without(self._net, trained))
        return True

    def unfreeze_for_optimizer(self) -> None:
        """Unfreezes what trains in the last epoch, for an optimizer that is to know it from the start.

        Until its stage trains, a parameter gets no gradient; so it gets neither state nor weight decay.
        """
        self.begin_epoch(sys.maxsize)

    def keep_frozen_in_eval(self) -> None:
        """Puts what is frozen into evaluation mode; to be called whenever the network is put into train mode."""
        for module in self._held:
            module.eval()


def _modules_without(net: nn.Module, trained: set[str]) -> Iterator[nn.Module]:
    """Yields the modules with parameters none of which trains, and those without parameters that come before one.

    A dropout belongs to the layer that sees what it leaves, so that before the head stays on.
    """
    next_is_frozen = False
    for place, module in reversed(list(net.named_modules())):
        names = [f"{place}.{name}" if place else name for name, _ in module.named_parameters()]
        is_frozen = trained.isdisjoint(names) if names else next_is_frozen
        if any(True for _ in module.parameters(recurse=False)):
            next_is_frozen = is_frozen
        if is_frozen:
            yield module


@dataclass(frozen=True)
class SplitNet:
    """A network in two parts that share its modules: what is frozen, up to one tensor, and what comes after.

    Attributes:
        frozen: From normalised images `(N, C, S, S)` to features, maps `(N, F, H, W)` or vectors `(N, F)`; of layers
            that stay in evaluation mode.
        late: By whether the network trains: from features to logits `(N, num_classes)`.
    """

    frozen: GraphModule
    late: dict[bool, GraphModule]


def split_net(net: nn.Module) -> SplitNet:
    """Cuts a network, in train mode but for what is frozen, where its frozen part ends; puts all of it into train mode.

    What follows the last frozen layer and draws nothing (pooling, an activation) belongs to the frozen part; a dropout
    before the head does not.

    Raises:
        ValueError: If the network cannot be followed, or its parts meet in more than one tensor; the message says why.
    """
    was_training, arguments = net.training, constant_arguments(net)
    tracer = NodePathTracer(**tracer_options())
    try:
        graph = tracer.trace(net, arguments)
        cut = _last_frozen(net, graph)
        place = tracer.node_to_qualname[cut]
        frozen, late = GraphModule(net, _up_to(graph, cut)), {True: GraphModule(net, _after(graph, cut))}
        tracer = NodePathTracer(**tracer_options())
        graph = tracer.trace(net.eval(), arguments)
        late[False] = GraphModule(net, _after(graph, next(n for n, p in tracer.node_to_qualname.items() if p == place)))
    except ValueError:
        raise
    except Exception as error:  # torch.fx cannot follow what depends on the values in a tensor
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"torch.fx cannot follow it: {reason}") from error
    finally:
        net.train(was_training)
    return SplitNet(frozen, late)


def check_split(net: nn.Module, split: SplitNet, images: torch.Tensor) -> tuple[int, ...]:
    """Compares a network's parts with the whole, training and not; the network stays as it is, but for its modes.

    Args:
        net: The network, in train mode but for what is frozen.
        split: Its parts.
        images: A few normalised images `(N, C, S, S)`, on the network's device.

    Returns:
        The shape of an image's features.

    Raises:
        ValueError: If the parts give other logits.
    """
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}  # BatchNorm's statistics move
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        features, same = split.frozen(images), []
        for training in (True, False):
            torch.manual_seed(0)
            whole = net(images) if training else net.eval()(images)
            torch.manual_seed(0)
            late = split.late[training](features)
            same.append(torch.equal(whole, late))
        for name, buffer in net.named_buffers():
            buffer.copy_(buffers[name])
    if not all(same):
        raise ValueError("its parts give other logits than the whole")
    return tuple(features.shape[1:])


def _last_frozen(net: nn.Module, graph: Graph) -> Node:
    """Returns the last frozen node from whose result alone, of all that depends on the images, the rest is computed."""
    late: set[Node] = set()
    # Of each node that depends on the images those that all ways to it lead through, itself included.
    gates: dict[Node, set[Node]] = {}
    for node in graph.nodes:
        inputs = [each for each in node.all_input_nodes if each in gates]
        if node.op == "placeholder" or inputs:
            gates[node] = {node}.union(set.intersection(*(gates[each] for each in inputs)) if inputs else ())
        if late.intersection(node.all_input_nodes) or _trains(net, node):
            late.add(node)
    common = set.intersection(*(gates[node] for node in late if node in gates)) - late
    last = next(node for node in reversed(graph.nodes) if node in common)
    if last.op == "placeholder":
        raise ValueError("no one tensor holds all that its frozen part gives to the rest")
    return last


def _trains(net: nn.Module, node: Node) -> bool:
    """Whether a node has parameters that train, or draws at random."""
    if node.op == "get_attr":
        return isinstance(found := attrgetter(str(node.target))(net), nn.Parameter) and found.requires_grad
    if node.op == "call_module":
        module = net.get_submodule(str(node.target))
        return any(parameter.requires_grad for parameter in module.parameters()) or (
            module.training and "Drop" in type(module).__name__
        )
    return "drop" in getattr(node.target, "__name__", "") or node.target in _DRAWS


def _up_to(graph: Graph, cut: Node) -> Graph:
    """Copies the part of a graph that ends with a node."""
    part, needed = Graph(), _with_changes(graph, _ancestors(cut))
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(copies[cut])
    return part


def _after(graph: Graph, cut: Node) -> Graph:
    """Copies the part of a graph that starts from a node's result."""
    part = Graph()
    copies = {cut: part.placeholder("features")}
    needed = _with_changes(graph, _ancestors(next(iter(reversed(graph.nodes))), {cut}))
    for node in graph.nodes:
        if node in needed:
            copies[node] = part.node_copy(node, copies.__getitem__)
    return part


def _ancestors(last: Node, known: Set[Node] = frozenset()) -> set[Node]:
    """Returns a node and all that it is computed from, but for what is known and what only that is computed from."""
    found: set[Node] = set()
    waiting = [last]
    while waiting:
        node = waiting.pop()
        if node not in found and node not in known:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def _with_changes(graph: Graph, needed: set[Node]) -> set[Node]:
    """Adds what changes one of these tensors in place, whose own result nothing takes: `mask.div_(keep_prob)`."""
    for node in graph.nodes:
        name = str(node.target)
        is_in_place = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        if is_in_place and node.args[0] in needed:
            needed |= _ancestors(node, needed)
    return needed
