"""Oracle of the pipelined epoch: the mixed forward of GNNPipe in dense float64, differentiated by autograd."""

from itertools import pairwise

import torch


def adjacency(graph, values=None):
    """The dense [N, N] matrix with the sum of the values (default: ones) of the edges j -> i at [i, j]."""
    n = graph.num_nodes
    values = torch.ones(graph.num_edges) if values is None else values
    rows = torch.repeat_interleave(torch.arange(n), graph.in_degree())
    matrix = torch.zeros(n, n, dtype=torch.float64)
    return matrix.index_put_((rows, graph.col.long()), values.double(), accumulate=True)


def propagation_matrix(graph, kind):
    """The dense [N, N] matrix of an aggregation: sum, mean or gcn."""
    matrix = adjacency(graph, graph.weight)
    if kind == "mean":
        return matrix / adjacency(graph).sum(dim=1).clamp(min=1)[:, None]
    if kind == "gcn":
        scale = (matrix.sum(dim=1) + 1).rsqrt()
        return scale[:, None] * (matrix + torch.eye(len(matrix), dtype=torch.float64)) * scale
    return matrix


class MixedGraph:
    """Chunks pass in ``order``; an aggregation reads current rows of chunks that have passed (with gradient) and
    ``history`` rows of the others (without). ``history[i]`` [N, F] belongs to aggregation i; zeros where missing."""

    def __init__(self, graph, bounds, order, history, shells=()):
        self.connected = adjacency(graph) > 0
        self.matrices = {kind: propagation_matrix(graph, kind) for kind in ("sum", "mean", "gcn")}
        self.rows = [slice(a, b) for a, b in pairwise(bounds)]
        self.order, self.history = order, history
        self.current = {}
        self.step = 0
        self.shells = [_MixedShell(self, shell) for shell in shells]

    def enter(self, chunk):
        self.chunk, self.site = chunk, 0
        self.num_nodes = self.rows[chunk].stop - self.rows[chunk].start
        self.node_ids = torch.arange(self.rows[chunk].start, self.rows[chunk].stop)

    def aggregate(self, x, *, weight=None, reduce="sum"):
        assert weight is None
        if reduce in ("max", "min"):
            connected = self.connected[self.rows[self.chunk]]
            messages = self.matrices["sum"][self.rows[self.chunk], :, None] * self._mixed(x)  # of edges that are single
            values = torch.where(connected[:, :, None], messages, float("-inf" if reduce == "max" else "inf"))
            extremum = values.amax(dim=1) if reduce == "max" else values.amin(dim=1)
            return torch.where(connected.any(dim=1)[:, None], extremum, 0.0)
        return self.matrices[reduce][self.rows[self.chunk]] @ self._mixed(x)

    def gcn_aggregate(self, x, *, weight=None, residual=None, alpha=0.0):
        assert weight is None
        out = (1 - alpha) * (self.matrices["gcn"][self.rows[self.chunk]] @ self._mixed(x))
        return out if residual is None else out + alpha * residual

    def _mixed(self, x):
        self.current[self.site, self.chunk] = x
        n = self.rows[-1].stop
        past = self.history[self.site] if self.site < len(self.history) else x.new_zeros(n, x.shape[1])
        parts = [self.current.get((self.site, c), past[rows]) for c, rows in enumerate(self.rows)]
        self.site += 1
        return torch.cat(parts)


class _MixedShell:
    """The same chunks, along the edges of a shell."""

    def __init__(self, mixed, shell):
        self.mixed, self.num_edges = mixed, shell.num_edges
        self.matrices = {kind: propagation_matrix(shell, kind) for kind in ("sum", "gcn")}

    @property
    def num_nodes(self):
        return self.mixed.num_nodes

    def aggregate(self, x, *, weight=None, reduce="sum"):
        return self.matrices[reduce][self.mixed.rows[self.mixed.chunk]] @ self.mixed._mixed(x)

    def gcn_aggregate(self, x, **_):
        return self.aggregate(x, reduce="gcn")


def mixed_loss(model, graph, bounds, order, history, features, labels, train, shells=()):
    """Mean cross entropy of the training nodes after one pipelined forward."""
    mixed = MixedGraph(graph, bounds, order, history, shells)
    loss = 0.0
    for chunk in order:
        mixed.enter(chunk)
        rows = mixed.rows[chunk]
        logits = model(mixed, features[rows])[train[rows]]
        loss = loss + torch.nn.functional.cross_entropy(logits, labels[rows][train[rows]], reduction="sum")
    return loss / train.sum()
