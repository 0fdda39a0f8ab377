"""Where a node stands in its graph: random walks that return, and eigenvectors of the Laplacian."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.aggregate import aggregate
from gossamer.graph.csr import CSR
from gossamer.graph.csr_convert import graph_of, one_graph_of

__all__ = ["LaplacianPE", "RandomWalkPE", "laplacian_pe", "random_walk_pe"]

_WALKS = 64  # walks at a time; every one is a column
_DENSE_NODES = 4096  # up to here all eigenvectors are cheaper than a few
_MOST_COLUMNS = 1 << 16  # of a positional encoding


@typed
def random_walk_pe(graph: CSR, num_steps: int) -> Tensor:
    """out[i, k - 1] = (P^k)[i, i], P = D^-1 A: how likely a walk from i is back after exactly k steps.

    P moves a walk along an edge from source to target, each equally likely, or by weight where the graph has weights; a
    walk without a way on ends. No power of P is formed: columns of P^k are carried along, the same node of every graph
    of a batch in one column, 64 columns at a time.

    Args:
        graph: one graph or a batch of graphs behind each other; weights nonnegative.
        num_steps: in [1, 65536].

    Returns:
        [num_nodes, num_steps], float32.

    Raises:
        TypeError: if graph is not a CSR.
        ValueError: if num_steps is out of its range.

    Source: Dwivedi et al. 2022, Graph Neural Networks with Learnable Structural and Positional Representations,
    equation 11.
    """
    _check("random_walk_pe", "num_steps", graph, num_steps)
    walks = graph.transpose()  # row i: where a walk at i can go
    if walks.weight is not None:
        ones = torch.ones(graph.num_nodes, 1, device=graph.device)
        total = aggregate(walks, ones)[walks._rows, 0]
        weight = torch.where(total > 0, walks.weight / total, 0)
    bounds = torch.ops.gossamer.diagonal_blocks(graph.rowptr.cpu(), graph.col.cpu()).to(graph.device)
    sizes = bounds.diff()
    node = torch.arange(graph.num_nodes, device=graph.device)
    place = node - bounds[:-1].repeat_interleave(sizes)  # of a node within its block
    out = torch.zeros(graph.num_nodes, num_steps, device=graph.device)
    for first in range(0, int(sizes.max()) if sizes.numel() else 0, _WALKS):
        starts = node[(place >= first) & (place < first + _WALKS)]
        column = place[starts] - first
        x = torch.zeros(graph.num_nodes, _WALKS, device=graph.device)
        x[starts, column] = 1
        for step in range(num_steps):
            x = aggregate(walks, x, reduce="mean") if walks.weight is None else aggregate(walks, x, weight=weight)
            out[starts, step] = x[starts, column]
    return out


@typed
def laplacian_pe(graph: CSR, num_vectors: int) -> Tensor:
    """Eigenvectors of I - D^-1/2 A D^-1/2 for the smallest eigenvalues after the first, of length 1.

    A is symmetric and without weights: repeated edges count once, self loops not. The sign of a vector is fixed by its
    largest entry, which is positive (the first of several). Where eigenvalues are equal their vectors are one choice
    out of many.

    Args:
        graph: one graph, on the CPU; a batch of graphs is one graph of several components.
        num_vectors: in [1, 65536].

    Returns:
        [num_nodes, num_vectors], float32; zeros where the graph has too few.

    Raises:
        TypeError: if graph is not a CSR.
        ValueError: if num_vectors is out of its range.
        ImportError: if the graph has more than 4096 nodes and scipy is not installed.

    Source: Dwivedi et al. 2023, Benchmarking Graph Neural Networks, section 3.3.
    """
    _check("laplacian_pe", "num_vectors", graph, num_vectors)
    vectors = _smallest_vectors(graph, min(num_vectors + 1, graph.num_nodes))[:, 1:]
    out = torch.zeros(graph.num_nodes, num_vectors)
    if vectors.numel():
        size = vectors.abs()
        largest = (size >= (1 - 1e-6) * size.max(0).values).int().argmax(0)  # rounding must not choose among equals
        out[:, : vectors.shape[1]] = (vectors * vectors.gather(0, largest[None]).sign()).float()
    return out


class RandomWalkPE:
    """Give PyG data ``random_walk_pe``: how likely a walk from a node is back after 1..num_steps steps.

    Args:
        num_steps: in [1, 65536].
        attr_name: name of the attribute; None puts the values behind the features ``x``.
    """

    @typed
    def __init__(self, num_steps: int, *, attr_name: str | None = "random_walk_pe") -> None:
        self.num_steps, self.attr_name = num_steps, attr_name

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with the values [num_nodes, num_steps]; edge_weight is used where present."""
        graph = graph_of("RandomWalkPE", data, getattr(data, "edge_weight", None))
        return _with_values(data, random_walk_pe(graph, self.num_steps), self.attr_name)

    def __repr__(self) -> str:
        return f"RandomWalkPE({self.num_steps})"


class LaplacianPE:
    """Give PyG data ``laplacian_pe``: eigenvectors of its Laplacian, one graph at a time; batches are refused.

    Args:
        num_vectors: in [1, 65536].
        attr_name: name of the attribute; None puts the values behind the features ``x``.
    """

    @typed
    def __init__(self, num_vectors: int, *, attr_name: str | None = "laplacian_eigenvector_pe") -> None:
        self.num_vectors, self.attr_name = num_vectors, attr_name

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with the values [num_nodes, num_vectors]."""
        graph = one_graph_of("LaplacianPE", data)
        return _with_values(data, laplacian_pe(graph, self.num_vectors), self.attr_name)

    def __repr__(self) -> str:
        return f"LaplacianPE({self.num_vectors})"


def _check(function: str, name: str, graph: CSR, count: int) -> None:
    if not isinstance(graph, CSR):
        raise TypeError(f"{function}: graph must be a CSR, got {type(graph).__name__}")
    if not 1 <= count <= _MOST_COLUMNS:
        raise ValueError(f"{function}: {name} must be in [1, {_MOST_COLUMNS}], got {count}")


def _smallest_vectors(graph: CSR, count: int) -> Tensor:
    """[num_nodes, count], float64: eigenvectors for the smallest eigenvalues of the normalised Laplacian."""
    edges = graph.to_edge_index()
    edges = torch.cat([edges, edges.flip(0)], 1)[:, (edges[0] != edges[1]).repeat(2)].unique(dim=1)
    degree = torch.bincount(edges[1], minlength=graph.num_nodes).clamp(min=1).double()
    values = -(degree[edges[0]] * degree[edges[1]]).rsqrt()
    if graph.num_nodes > _DENSE_NODES:
        return _smallest_vectors_sparse(edges, values, graph.num_nodes, count)
    laplacian = torch.eye(graph.num_nodes, dtype=torch.float64)
    laplacian[edges[0], edges[1]] = values
    return torch.linalg.eigh(laplacian).eigenvectors[:, :count]


def _smallest_vectors_sparse(edges: Tensor, values: Tensor, num_nodes: int, count: int) -> Tensor:
    import numpy
    import scipy.sparse

    matrix = scipy.sparse.coo_matrix((values.numpy(), edges.numpy()), (num_nodes, num_nodes))
    matrix = (matrix + scipy.sparse.identity(num_nodes)).tocsc()
    start = numpy.random.default_rng(0).standard_normal(num_nodes)  # the same result every time
    eigenvalues, vectors = scipy.sparse.linalg.eigsh(matrix, k=count, sigma=-1e-3, v0=start)
    return torch.from_numpy(vectors[:, eigenvalues.argsort()].copy())


def _with_values(data: Any, values: Tensor, name: str | None) -> Any:
    out = copy.copy(data)
    if name is not None:
        out[name] = values
    else:
        x = data.x if data.x is None or data.x.dim() > 1 else data.x[:, None]
        out.x = values if x is None else torch.cat([x, values.to(x.dtype)], 1)
    return out
