"""Many graphs behind each other, and batches of them without a loop over graphs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gossamer.graph import CSR, laplacian_pe

from contacts import Contacts, Pairs
from ragged import members, pointers

__all__ = ["GraphBatch", "GraphSet", "stratified_splits"]


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Some graphs as one.

    Attributes:
        graph: N nodes, graph after graph.
        x: [N, F], float features or int64 categories.
        positional: [N, P], float, or None.
        y: one row per graph, or per node; or pairs of nodes.
        sizes: [num_graphs], int64, number of nodes of each graph.
    """

    graph: CSR
    x: Tensor
    positional: Tensor | None
    y: Tensor | Pairs
    sizes: Tensor

    def to(self, device: torch.device) -> GraphBatch:
        """The batch on a device."""
        positional = None if self.positional is None else self.positional.to(device)
        tensors = (self.x.to(device), positional, self.y.to(device), self.sizes.to(device))
        return GraphBatch(self.graph.to(device), *tensors)


@dataclass(frozen=True, eq=False)
class GraphSet:
    """The graphs of a data set.

    Attributes:
        x: [N, F], float features or int64 categories.
        edge_index: [2, E], int64, source and target, numbered within all N nodes, graph after graph.
        node_ptr, edge_ptr: [num_graphs + 1], int64: graph g owns the nodes [node_ptr[g], node_ptr[g + 1]), and edges.
        y: [num_graphs, ...] or, where ``node_level``, [N, ...]; or the contacts of every graph.
        splits: numbers of the graphs, by train, val and test.
        node_level: whether nodes are labelled, not graphs.
        positional: [N, P], float, or None.
    """

    x: Tensor
    edge_index: Tensor
    node_ptr: Tensor
    edge_ptr: Tensor
    y: Tensor | Contacts
    splits: dict[str, Tensor]
    node_level: bool = False
    positional: Tensor | None = None

    @property
    def num_graphs(self) -> int:
        return len(self.node_ptr) - 1

    def batch(self, ids: Tensor) -> GraphBatch:
        """The graphs with these numbers, in this order."""
        nodes, sizes = members(self.node_ptr, ids)
        edges, num_edges = members(self.edge_ptr, ids)
        moved = (sizes.cumsum(0) - sizes - self.node_ptr[ids]).repeat_interleave(num_edges)
        graph = CSR.from_edge_index(self.edge_index[:, edges] + moved, len(nodes))
        positional = None if self.positional is None else self.positional[nodes]
        return GraphBatch(graph, self.x[nodes], positional, self.y[nodes if self.node_level else ids], sizes)

    def targets(self, ids: Tensor) -> Tensor | Pairs:
        """The y of these graphs."""
        return self.y[members(self.node_ptr, ids)[0] if self.node_level else ids]

    def of_epoch(self, seed: int) -> GraphSet:
        """The set as an epoch sees it: beside contacts stand other pairs every time."""
        return replace(self, y=self.y.redrawn(seed)) if isinstance(self.y, Contacts) else self

    def with_laplacian(self, num_vectors: int) -> GraphSet:
        """The set with the first eigenvectors of each graph as positional encoding."""
        parts = [laplacian_pe(self.batch(torch.tensor([g])).graph, num_vectors) for g in range(self.num_graphs)]
        return replace(self, positional=torch.cat(parts))

    @classmethod
    def from_pyg(cls, parts: dict[str, Iterable[Any]], *, node_level: bool = False) -> GraphSet:
        """The graphs of PyG ``Data`` by split; without node features, a one for every node. Graphs that label pairs of
        nodes have contacts for y."""
        graphs = [data for part in parts.values() for data in part]
        x = [torch.ones(data.num_nodes, 1) if data.x is None else data.x for data in graphs]
        ptr = [pointers([getattr(data, n) for data in graphs]) for n in ("num_nodes", "num_edges")]
        edges = torch.cat([data.edge_index + start for data, start in zip(graphs, ptr[0])], 1)
        ends = torch.tensor([len(part) for part in parts.values()]).cumsum(0)  # type: ignore[arg-type]
        splits = dict(zip(parts, torch.arange(len(graphs)).tensor_split(ends[:-1])))
        paired = "edge_label_index" in graphs[0]
        y = Contacts.from_pyg(graphs) if paired else torch.cat([data.y for data in graphs])
        return cls(torch.cat(x), edges, *ptr, y, splits, node_level)


def stratified_splits(labels: Tensor, seed: int) -> dict[str, Tensor]:
    """8 of 10 graphs for training, 1 for validation, 1 for the test, from every class alike.

    Args:
        labels: [num_graphs], int64; all 0 for a split without classes.
        seed: of the order.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    place = torch.arange(len(order)) % 10
    return {"train": order[place > 1], "val": order[place == 1], "test": order[place == 0]}
