"""Multi-hop neighbour sampling: uniform, weighted and temporal, the same for any number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.compressed import CompressedCSR
from gossamer.graph.csr import CSR, _col_dtype, _count_rows
from gossamer.graph.sampling_device import Rules, sample_on_device
from gossamer.graph.sampling_index import SamplingIndex, _signed, prepare_relation

__all__ = ["SampledSubgraph", "check_fanout", "check_seeds", "check_window", "neighbor_sample"]

TEMPORAL = ("uniform", "last", "recency")


@dataclass(frozen=True)
class SampledSubgraph:
    """A sampled neighbourhood in local ids, with the fields of PyG's ``SamplerOutput``.

    Args:
        node: [num_nodes], int64, global ids in the order of discovery; the seeds come first.
        row: [num_edges], int64, local id of the source of each edge.
        col: [num_edges], int64, local id of its target, ascending.
        edge: [num_edges], int64, the caller's number of the edge: ``graph.edge_ids`` if there, else its position.
        batch: [num_nodes], int64, the seed whose tree a node is in; None unless the trees are disjoint.
        num_sampled_nodes: new nodes of hop 0 (the seeds), 1, ...
        num_sampled_edges: edges of hop 1, 2, ...
    """

    node: Tensor
    row: Tensor
    col: Tensor
    edge: Tensor
    batch: Tensor | None
    num_sampled_nodes: list[int]
    num_sampled_edges: list[int]

    def to_csr(self, num_hops: int | None = None) -> CSR:
        """The first num_hops hops (None: all) as a graph of the local ids, whose edges are the first of this one."""
        hops = len(self.num_sampled_edges) if num_hops is None else num_hops
        if hops < 0:
            raise ValueError(f"SampledSubgraph.to_csr: num_hops must be at least 0, got {num_hops}")
        num_nodes = sum(self.num_sampled_nodes[: hops + 1])
        num_edges = sum(self.num_sampled_edges[:hops])
        rowptr = _count_rows(self.col[:num_edges], num_nodes)
        return CSR._trusted(rowptr, self.row[:num_edges].to(_col_dtype(num_nodes)), num_nodes)


@typed
def neighbor_sample(
    graph: CSR | CompressedCSR,
    seeds: Tensor,
    fanouts: Sequence[float],
    *,
    seed: int,
    replace: bool = False,
    weighted: bool = False,
    seed_time: Tensor | None = None,
    temporal: str = "uniform",
    window: int | None = None,
    node_time: Tensor | None = None,
    disjoint: bool = False,
) -> SampledSubgraph:
    """Sample a multi-hop neighbourhood of the seeds, following edges backwards from target to source.

    The choice at a node depends on (seed, hop, node) alone - in disjoint trees also on the place of its seed in
    ``seeds`` - so equal seeds give equal samples for any number of threads, whatever else is in the batch. What a graph
    needs for weights and times is prepared on the first call and kept; its tensors must not change afterwards.

    Seeds on a GPU are sampled there, from a graph on that GPU or in pinned host memory, with the result that the CPU
    gives. (The last resort of weighted sampling compares logarithms in double precision, which may round otherwise on a
    GPU.)

    Args:
        graph: in-neighbours in CSR form; a CompressedCSR can be sampled uniformly, in one subgraph of all seeds.
        seeds: [num_seeds], int64 or int32, node ids in [0, graph.num_nodes), on CPU or GPU. A seed given twice is two
            nodes of the result; edges refer to the first, unless the trees are disjoint.
        fanouts: edges kept per node and hop, nearest hop first: a number below 2^31, -1 for all, or a share of the
            node's edges in (0, 1), rounded up.
        seed: random seed.
        replace: draw with replacement; a node with edges then always gets its full fan-out.
        weighted: choose edges in proportion to ``graph.weight`` (finite, not negative, read as float32) instead of
            equally; without replacement one after the other, each in proportion among those left. Edges of weight 0 are
            never chosen.
        seed_time: [num_seeds], integers, where the seeds are; the tree of a seed has no edge with a later time. Implies
            disjoint trees.
        temporal: how to choose among the edges in time: ``uniform``; ``last``, the latest; ``recency``, in proportion
            to the rank by time, the oldest having rank 1 (times the weight, if weighted).
        window: with seed_time, the time of an edge must also be at least seed_time - window.
        node_time: [num_nodes], int64; the time of an edge is that of its source, or ``graph.time`` where that is later:
            an edge is there when both are.
        disjoint: one tree per seed instead of one subgraph of all.

    Returns:
        The sampled subgraph.

    Raises:
        ValueError: if an argument is out of its range, or times or weights are asked for and not there.

    Source: Hamilton et al. 2017, Inductive Representation Learning on Large Graphs, Algorithm 1; weights by Efraimidis
    and Spirakis 2006, Weighted random sampling with a reservoir; recency by Nguyen et al. 2018, Continuous-Time Dynamic
    Network Embeddings, section 3.2 (linear).
    """
    _check_choice(replace, seed_time, temporal, window, node_time)
    if isinstance(graph, CompressedCSR):
        if weighted or disjoint or seed_time is not None:
            raise ValueError(
                "neighbor_sample: graph must be a CSR for weights, times and disjoint trees, got a CompressedCSR"
            )
        return _sample_compressed(graph, seeds, fanouts, seed, replace)
    _check_device(graph, seeds)
    on_cpu = seeds.device.type == "cpu"
    seeds = check_seeds("neighbor_sample", seeds, graph.num_nodes, on_cpu=on_cpu)
    fanouts = [check_fanout("neighbor_sample", fanout) for fanout in fanouts]
    seed_time = None if seed_time is None else _check_times(seed_time, seeds)
    trees = disjoint or seed_time is not None
    index = _index_of(graph, weighted, seed_time is not None, node_time)
    if not on_cpu:
        rules = Rules(seed, replace, temporal, -1 if window is None else window, seed_time, trees)
        out = sample_on_device(index.relations[0], graph.num_nodes, seeds, fanouts, rules)
        return SampledSubgraph(out.node, out.row, out.col, out.edge, out.batch, out.num_nodes, out.num_edges)
    raw = index.sample(
        [seeds],
        [fanouts],
        seed=seed,
        replace=replace,
        temporal=temporal,
        window=window,
        seed_time=None if seed_time is None else [seed_time],
        disjoint=trees,
    )
    return SampledSubgraph(raw.node[0], *raw.edges[0], raw.batch[0], raw.num_nodes[0], raw.num_edges[0])


def _sample_compressed(
    graph: CompressedCSR, seeds: Tensor, fanouts: Sequence[float], seed: int, replace: bool
) -> SampledSubgraph:
    seeds = check_seeds("neighbor_sample", seeds, graph.num_nodes)
    fanouts = [check_fanout("neighbor_sample", fanout) for fanout in fanouts]
    node, row, col, edge, num_nodes, num_edges = graph._sample(seeds, fanouts, _signed(seed), replace)
    return SampledSubgraph(node, row, col, edge, None, num_nodes.tolist(), num_edges.tolist())


def check_fanout(function: str, fanout: float) -> float:
    """The fan-out, if it is -1, a positive whole number or a share in (0, 1)."""
    if fanout == -1 or 0 < fanout < 1 or (1 <= fanout < 1 << 31 and fanout == int(fanout)):
        return fanout
    raise ValueError(f"{function}: fanouts must be -1, in [1, 2^31), or a share in (0, 1), got {fanout}")


def _check_choice(
    replace: bool, seed_time: Tensor | None, temporal: str, window: int | None, node_time: Tensor | None
) -> None:
    if temporal not in TEMPORAL:
        raise ValueError(f"neighbor_sample: temporal must be uniform, last or recency, got {temporal!r}")
    if seed_time is None and (temporal != "uniform" or window is not None or node_time is not None):
        raise ValueError("neighbor_sample: seed_time must be given for temporal, window and node_time, got None")
    if replace and temporal == "last":
        raise ValueError("neighbor_sample: replace must be False for temporal='last', got True")
    if window is not None:
        check_window("neighbor_sample", window)


def check_window(function: str, window: int) -> None:
    if not 0 <= window < 1 << 63:
        raise ValueError(f"{function}: window must be in [0, 2^63), got {window}")


def _check_device(graph: CSR, seeds: Tensor) -> None:
    if seeds.device.type == "cpu" and graph.device.type != "cpu":
        raise ValueError(f"neighbor_sample: graph must be on the CPU like the seeds, got {graph.device}")
    pinned = graph._row_pointers.is_pinned() and graph.col.is_pinned()
    if seeds.device.type != "cpu" and graph.device != seeds.device and not pinned:
        raise ValueError(
            f"neighbor_sample: graph must be on {seeds.device} like the seeds or in pinned memory, got {graph.device}"
        )


def check_seeds(function: str, seeds: Tensor, num_nodes: int, *, on_cpu: bool = True) -> Tensor:
    """The seeds as int64, if they are node ids."""
    if seeds.dtype not in (torch.int64, torch.int32) or seeds.dim() != 1:
        raise TypeError(
            f"{function}: seeds must be a vector of int64 or int32, got {seeds.dim()} dimensions of {seeds.dtype}"
        )
    if on_cpu and seeds.device.type != "cpu":
        raise ValueError(f"{function}: seeds must be on the CPU, got {seeds.device}")
    if seeds.numel() and not (int(seeds.min()) >= 0 and int(seeds.max()) < num_nodes):
        raise ValueError(f"{function}: seeds must be in [0, {num_nodes}), got {int(seeds.min())} to {int(seeds.max())}")
    return seeds.to(torch.int64).contiguous()


def _check_times(seed_time: Tensor, seeds: Tensor) -> Tensor:
    if seed_time.shape != seeds.shape or seed_time.is_floating_point() or seed_time.device != seeds.device:
        raise ValueError(
            f"neighbor_sample: seed_time must be one integer per seed on {seeds.device}, "
            f"got shape {list(seed_time.shape)} of {seed_time.dtype} on {seed_time.device}"
        )
    return seed_time.to(torch.int64).contiguous()


# What was prepared for (weighted, timed), with the node times it was prepared for.
_Prepared = dict[tuple[bool, bool], tuple[SamplingIndex, Tensor | None]]
_PREPARED: WeakKeyDictionary[CSR, _Prepared] = WeakKeyDictionary()


def _index_of(graph: CSR, weighted: bool, timed: bool, node_time: Tensor | None) -> SamplingIndex:
    """The prepared graph, kept as long as the graph lives; of several node times only the latest are kept."""
    prepared = _PREPARED.setdefault(graph, {})
    key = (weighted, timed)
    if key not in prepared or prepared[key][1] is not node_time:
        prepared[key] = (_prepare(graph, weighted, timed, node_time), node_time)
    return prepared[key][0]


def _prepare(graph: CSR, weighted: bool, timed: bool, node_time: Tensor | None) -> SamplingIndex:
    if weighted and graph.weight is None:
        raise ValueError("neighbor_sample: graph must have weights for weighted=True, got None")
    time = graph.time
    if node_time is not None:
        if node_time.shape != (graph.num_nodes,) or node_time.is_floating_point():
            raise ValueError(
                f"neighbor_sample: node_time must be [{graph.num_nodes}] integers, "
                f"got {list(node_time.shape)} of {node_time.dtype}"
            )
        source_time = node_time[graph.col.long()].to(torch.int64)
        time = source_time if time is None else torch.maximum(source_time, time)
    if timed and time is None:
        raise ValueError("neighbor_sample: graph must have edge times, or node_time be given, for seed_time, got None")
    relation = prepare_relation(
        graph.rowptr,
        graph.col,
        edge_ids=graph.edge_ids,
        weight=graph.weight if weighted else None,
        time=time.to(torch.int64) if timed and time is not None else None,
        row_pointers=graph._row_pointers,
    )
    return SamplingIndex([relation], [graph.num_nodes])
