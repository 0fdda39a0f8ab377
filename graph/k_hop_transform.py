"""KHop: the k-hop pairs of a graph beside its edges, as a transform of PyG data."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.aggregate import propagation
from gossamer.graph.csr import CSR
from gossamer.graph.csr_convert import check_batch, graph_of
from gossamer.graph.k_hop import _MAX_PAIRS, k_hop
from gossamer.graph.shell_file import load_shells, save_shells

__all__ = ["KHop", "hop_edge_attr", "hop_shells", "prepare_shells"]


class KHop:
    """Give PyG data its k-hop pairs: ``hop_index`` [2, num_pairs] (source, target) and ``hop`` [num_pairs].

    ``max_hops`` says up to which distance there are pairs. Edges and edge features stay what they are. Batches are
    made as of any other index: a ``DataLoader`` shifts hop_index by the nodes before. ``hop_shells`` turns them into
    the graphs that DRew layers take.

    Args:
        max_hops: number of shells, at least 1.
        directed: follow edges from source to target only; False walks them both ways.
        cache: folder for results, made where it is missing. A file is named after the content of the graph, so that
            another graph never meets it, and checked when it is read; a damaged one is made anew.
        max_pairs: refuse data with more pairs than this; they are counted before anything is allocated.
    """

    @typed
    def __init__(
        self,
        max_hops: int,
        *,
        directed: bool = True,
        cache: str | os.PathLike[str] | None = None,
        max_pairs: int = _MAX_PAIRS,
    ) -> None:
        if not isinstance(max_hops, int) or isinstance(max_hops, bool) or not 1 <= max_hops <= 255:
            raise ValueError(f"KHop: max_hops must be an int in [1, 255], got {max_hops}")
        self.max_hops, self.directed, self.max_pairs = max_hops, directed, max_pairs
        self.cache = None if cache is None else Path(cache)
        if self.cache is not None and self.cache.exists() and not self.cache.is_dir():
            raise ValueError(f"KHop: cache must be a folder, got {os.fspath(self.cache)!r}")

    def __call__(self, data: Any) -> Any:
        """A shallow copy of the data with hop_index (int64) and hop (uint8), sorted by (hop, target, source), and
        max_hops (int). A batch whose edges join two of its graphs raises ValueError."""
        shells = self._shells(graph_of("KHop", data))
        hops = torch.arange(1, self.max_hops + 1, dtype=torch.uint8)
        data = copy.copy(data)
        data.hop_index = torch.cat([torch.stack([shell.col.long(), shell._rows.long()]) for shell in shells], 1)
        data.hop = hops.repeat_interleave(torch.tensor([shell.num_edges for shell in shells]))
        data.max_hops = self.max_hops
        return data

    def __repr__(self) -> str:
        return f"KHop({self.max_hops}, directed={self.directed})"

    def _shells(self, graph: CSR) -> list[CSR]:
        if self.cache is None:
            return k_hop(graph, self.max_hops, directed=self.directed, max_pairs=self.max_pairs)
        path = self.cache / f"{self._key(graph)}.shells"
        with contextlib.suppress(FileNotFoundError, ValueError):
            shells = load_shells(path)
            if sum(shell.num_edges for shell in shells) <= self.max_pairs:
                return shells
        shells = k_hop(graph, self.max_hops, directed=self.directed, max_pairs=self.max_pairs)
        self.cache.mkdir(parents=True, exist_ok=True)
        save_shells(path, shells)
        return shells

    def _key(self, graph: CSR) -> str:
        digest = hashlib.sha256(f"{self!r} {graph.num_nodes}".encode())
        for ids in (graph.rowptr, graph.col.long()):
            digest.update(ids.cpu().numpy().tobytes())
        return digest.hexdigest()


@typed
def hop_shells(data: Any, max_hops: int) -> list[CSR]:
    """The pairs that KHop gave to data, or to every graph of a batch, as max_hops graphs.

    Where the pairs are not stored, ``k_hop(CSR.from_pyg(batch), max_hops)`` gives the same shells, and faster.

    Raises:
        TypeError: if data has no pairs.
        ValueError: if max_hops is below 1, or above what KHop was asked for, or a pair joins two graphs of a batch.
    """
    edges, hops = getattr(data, "hop_index", None), getattr(data, "hop", None)
    if not isinstance(edges, Tensor) or not isinstance(hops, Tensor):
        raise TypeError(f"hop_shells: data must have the pairs of KHop, got {type(data).__name__} without them")
    most = int(torch.as_tensor(getattr(data, "max_hops", 255)).min())  # a batch has one per graph
    if not 1 <= max_hops <= most:
        raise ValueError(f"hop_shells: max_hops must be in [1, {most}], the hops of KHop, got {max_hops}")
    shells = [CSR.from_edge_index(edges[:, hops == k], data.num_nodes) for k in range(1, max_hops + 1)]
    check_batch("hop_shells", data, "hop_index")
    return shells


@typed
def hop_edge_attr(shell: CSR, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
    """The bond features of shell 1, in its edge order: what DRew layers with edge_channels or edge_types take.

    Args:
        shell: the first of ``hop_shells`` or ``k_hop``.
        edge_index: [2, num_bonds], source over target, of the same nodes.
        edge_attr: [num_bonds, ...]; where a bond comes several times, its first row counts.

    Returns:
        [shell.num_edges, ...], differentiable in edge_attr.

    Raises:
        ValueError: if an edge of the shell is no bond (such as one against its direction, of ``directed=False``), or
            edge_index and edge_attr differ in number.
    """
    num_bonds = edge_index.shape[1]
    if edge_attr.dim() == 0 or edge_attr.shape[0] != num_bonds:
        raise ValueError(f"hop_edge_attr: edge_attr must have {num_bonds} rows, got {list(edge_attr.shape)}")
    bonds, order = (edge_index[1].long() * shell.num_nodes + edge_index[0]).sort(stable=True)
    wanted = shell._rows * shell.num_nodes + shell.col
    place = torch.searchsorted(bonds, wanted)
    found = torch.zeros_like(wanted, dtype=torch.bool)
    inside = place < num_bonds
    found[inside] = bonds[place[inside]] == wanted[inside]
    if not found.all():
        missing = shell.to_edge_index()[:, ~found][:, 0].tolist()
        raise ValueError(f"hop_edge_attr: edge_index must have every edge of the shell, got none for {missing}")
    return edge_attr.index_select(0, order[place])


@typed
def prepare_shells(shells: Sequence[CSR], dtype: torch.dtype = torch.float32) -> None:
    """Compute what layers keep with their shells: transposes, rows and normalisations.

    The first call of a layer does it otherwise. ``torch.compile`` with fullgraph=True takes prepared shells alone.
    """
    for shell in shells:
        back = shell.transpose()
        for graph in (shell, back):
            _ = graph._rows, graph._transpose_positions
            for kind in ("gcn", "sum"):
                propagation(graph, kind, dtype=dtype)
