"""Whether the machines of a Ray cluster can keep runs where they belong."""

from collections.abc import Sequence

from lit_cnn.core.errors import UsageError
from lit_cnn.core.ray_cluster import Node, in_a_line, not_seeing, on_each
from lit_cnn.tracking.client import require_reachable
from lit_cnn.tracking.store import Store


def nodes_apart(nodes: Sequence[Node], store: Store) -> list[Node]:
    """Returns the machines that do not see the folder of the runs here, and send theirs to a server themselves.

    Args:
        nodes: Of the cluster this process has joined, others than this one.
        store: Where runs are kept.

    Raises:
        UsageError: If one can do neither.
    """
    apart = not_seeing(nodes, store.journal_dir) if nodes else []
    for node in apart if not store.is_http else ():
        reason = f"node {node.host} does not see the folder of the runs, {store.journal_dir}"
        raise UsageError("tracking_uri", store.label, reason, "share that, or keep runs on a server: http://HOST:PORT")
    for node, error in zip(apart, on_each(apart, require_reachable, store), strict=True):
        if error is not None:
            reason = f"from node {node.host}: {in_a_line(error)}"
            raise UsageError("tracking_uri", store.label, reason, "give an address that all nodes reach")
    return apart
