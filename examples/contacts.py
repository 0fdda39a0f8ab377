"""Contacts of molecules (PCQM-Contact): pairs of atoms that are close in space, though not along the bonds.

Source: Dwivedi et al. 2022, Long Range Graph Benchmark, and its code for the pairs that are no contacts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ragged import members, pointers

__all__ = ["Contacts", "Pairs"]

PER_CONTACT, TRIES = 2, 10


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of nodes of some graphs, graph after graph.

    Attributes:
        ends: [2, P], int64, numbered within the nodes of all these graphs.
        labels: [P], float32: 1 for a contact, 0 for a pair that is none.
        sizes: [num_graphs], int64, number of nodes of each graph.
    """

    ends: Tensor
    labels: Tensor
    sizes: Tensor

    def to(self, device: torch.device) -> Pairs:
        """The pairs on a device."""
        return Pairs(self.ends.to(device), self.labels.to(device), self.sizes.to(device))


@dataclass(frozen=True, eq=False)
class Contacts:
    """The contacts of every graph, and pairs to tell them from.

    Attributes:
        ends: [2, P], int64, numbered within their graph, graph after graph.
        labels: [P], float32: 1 for a contact, 0 for a pair that is none.
        ptr: [num_graphs + 1], int64: graph g owns the pairs [ptr[g], ptr[g + 1]).
        sizes: [num_graphs], int64, number of nodes of each graph.
    """

    ends: Tensor
    labels: Tensor
    ptr: Tensor
    sizes: Tensor

    def __getitem__(self, ids: Tensor) -> Pairs:
        """The pairs of the graphs with these numbers, in this order."""
        mine, counts = members(self.ptr, ids)
        sizes = self.sizes[ids]
        return Pairs(self.ends[:, mine] + (sizes.cumsum(0) - sizes).repeat_interleave(counts), self.labels[mine], sizes)

    def redrawn(self, seed: int) -> Contacts:
        """The contacts beside newly drawn pairs that are none: two pairs (i, k) for every contact (i, j), k any node of
        the graph, no pair twice. Where a node has no such pairs left, there are fewer."""
        generator = torch.Generator().manual_seed(seed)
        own = self.labels > 0
        graph = torch.arange(len(self.sizes)).repeat_interleave(self.ptr.diff())[own]
        stride = int(self.sizes.max())
        heads = (self.sizes.cumsum(0) - self.sizes)[graph] + self.ends[0, own]
        contacts = taken = (heads * stride + self.ends[1, own]).unique()
        heads, sizes = heads.repeat(PER_CONTACT), self.sizes[graph].repeat(PER_CONTACT)
        for _ in range(TRIES):
            tails = (torch.rand(len(heads), generator=generator, dtype=torch.float64) * sizes).long()
            both, order = torch.cat([taken, heads * stride + tails]).sort(stable=True)
            first = torch.cat([torch.ones(min(len(both), 1), dtype=torch.bool), both[1:] != both[:-1]])
            again = order[~first & (order >= len(taken))] - len(taken)
            taken, heads, sizes = both[first], heads[again], sizes[again]
        return self._of_keys(taken, torch.isin(taken, contacts).float(), stride)

    def _of_keys(self, keys: Tensor, labels: Tensor, stride: int) -> Contacts:
        """Pairs from ascending (head within all nodes) * stride + (tail within its graph)."""
        ends = self.sizes.cumsum(0)
        heads, tails = keys.div(stride, rounding_mode="floor"), keys % stride
        graph = torch.bucketize(heads, ends, right=True)
        ptr = torch.cat([torch.zeros(1, dtype=torch.int64), graph.bincount(minlength=len(ends)).cumsum(0)])
        return Contacts(torch.stack([heads - (ends - self.sizes)[graph], tails]), labels, ptr, self.sizes)

    @classmethod
    def from_pyg(cls, graphs: Sequence[Any], *, seed: int = 0) -> Contacts:
        """The pairs that the graphs label 1; those labelled 0 are drawn anew.

        Raises:
            ValueError: if a pair is not one of nodes of its graph.
        """
        ends = [graph.edge_label_index[:, graph.edge_label == 1] for graph in graphs]
        for number, (graph, pairs) in enumerate(zip(graphs, ends)):
            if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < graph.num_nodes:
                raise ValueError(
                    f"Contacts: edge_label_index of graph {number} must be node ids in [0, {graph.num_nodes}), got "
                    f"{int(pairs.min())} to {int(pairs.max())}"
                )
        ptr, sizes = pointers([pairs.shape[1] for pairs in ends]), torch.tensor([graph.num_nodes for graph in graphs])
        return cls(torch.cat(ends, 1), torch.ones(int(ptr[-1])), ptr, sizes).redrawn(seed)
