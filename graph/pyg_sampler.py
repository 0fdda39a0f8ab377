"""NeighborSampler: the sampler as a PyG ``BaseSampler``. The one file of the sampling code that imports PyG."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch_geometric.sampler import (
    BaseSampler,
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
    NumNeighbors,
    SamplerOutput,
)
from torch_geometric.sampler.base import SubgraphType
from torch_geometric.sampler.neighbor_sampler import edge_sample, node_sample

from gossamer.graph.induced import induced_edges
from gossamer.graph.pyg_edges import EdgeSet, read_edges
from gossamer.graph.sampling import TEMPORAL, check_fanout, check_seeds, check_window
from gossamer.graph.sampling_index import RawSample, SamplingIndex, prepare_relation

__all__ = ["NeighborSampler"]


class NeighborSampler(BaseSampler):
    """``neighbor_sample`` for PyG's ``NodeLoader``, ``LinkLoader`` and their relatives; needs no pyg-lib.

    Takes the arguments of PyG's own sampler, and what that one refuses: weights together with times, rows in any order
    of time, induced subgraphs with times. The sample of a batch depends on ``seed``, the epoch and the seeds in the
    batch, so it is the same for any number of workers and after a resumption; call ``set_epoch`` before every epoch.

    Args:
        data: ``Data``, ``HeteroData``, or a pair of feature store and graph store.
        num_neighbors: edges per node and hop, as a list, or a dictionary of lists by edge type; may be set anew between
            batches. As in ``neighbor_sample`` -1 means all and a share in (0, 1) that share; 0 means none.
        subgraph_type: directional, bidirectional (with the reverse of every sampled edge) or induced (all edges between
            sampled nodes; with times those that the seed may see).
        replace: draw with replacement.
        disjoint: one tree per seed; implied by ``time_attr``.
        temporal_strategy: uniform, last or recency.
        time_attr: name of the times of nodes or of edges, integers; of both, an edge is there when it and its source
            are.
        weight_attr: name of the edge weights.
        window: largest difference between the time of a seed and that of its edges. Edge types without times are not
            limited by times.
        seed: random seed.
    """

    def __init__(
        self,
        data: Any,
        num_neighbors: Any,
        subgraph_type: SubgraphType | str = "directional",
        replace: bool = False,
        disjoint: bool = False,
        temporal_strategy: str = "uniform",
        time_attr: str | None = None,
        weight_attr: str | None = None,
        *,
        window: int | None = None,
        seed: int = 0,
    ) -> None:
        if temporal_strategy not in TEMPORAL:
            raise ValueError(f"NeighborSampler: temporal_strategy must be one of {TEMPORAL}, got {temporal_strategy!r}")
        if replace and temporal_strategy == "last":
            raise ValueError("NeighborSampler: replace must be False for temporal_strategy='last', got True")
        if subgraph_type not in (*SubgraphType, *(types := [kind.value for kind in SubgraphType])):
            raise ValueError(f"NeighborSampler: subgraph_type must be one of {types}, got {subgraph_type!r}")
        if window is not None:
            check_window("NeighborSampler", window)
        edges = read_edges(data, time_attr, weight_attr)
        self.is_hetero = edges.is_hetero
        self.node_types, self.edge_types = edges.node_types, edges.edge_types
        self.node_time = edges.node_time
        self.is_temporal = time_attr is not None
        self.index = _prepare(edges)
        self.num_neighbors = num_neighbors
        self.subgraph_type = SubgraphType(subgraph_type)
        self.replace = replace
        self.disjoint = disjoint or self.is_temporal
        self.temporal_strategy = temporal_strategy
        self.window = window
        self.keep_orig_edges = False
        self.seed, self.epoch = seed, 0

    @property
    def num_neighbors(self) -> NumNeighbors:
        return self._num_neighbors

    @num_neighbors.setter
    def num_neighbors(self, value: Any) -> None:
        value = value if isinstance(value, NumNeighbors) else NumNeighbors(value)
        if self.is_hetero:
            by_name = value.get_mapped_values(self.edge_types)
            fanouts = [by_name["__".join(edge_type)] for edge_type in self.edge_types]
        else:
            fanouts = [value.get_values()]
        for fanout in (fanout for hops in fanouts for fanout in hops):
            if fanout != 0:
                check_fanout("NeighborSampler", fanout)
        self._num_neighbors, self._fanouts = value, fanouts

    def set_epoch(self, epoch: int) -> None:
        """Draw other samples in this epoch than in others. Workers see it when they are started."""
        self.epoch = epoch

    # What loaders call

    def sample_from_nodes(self, inputs: NodeSamplerInput, **_: Any) -> SamplerOutput | HeteroSamplerOutput:
        out = node_sample(inputs, partial(self._sample, self._batch_seed(inputs.node)))
        return out.to_bidirectional(self.keep_orig_edges) if self._bidirectional else out

    def sample_from_edges(
        self, inputs: EdgeSamplerInput, neg_sampling: NegativeSampling | None = None
    ) -> SamplerOutput | HeteroSamplerOutput:
        batch_seed = self._batch_seed(inputs.row, inputs.col)
        num_nodes = dict(zip(self.node_types, self.index.num_nodes)) if self.is_hetero else self.index.num_nodes[0]
        with torch.random.fork_rng(devices=[]):  # PyG draws negative edges from the global generator
            torch.manual_seed(batch_seed)
            draw = partial(self._sample, batch_seed)
            out = edge_sample(inputs, draw, num_nodes, self.disjoint, self.node_time, neg_sampling)
        return out.to_bidirectional(self.keep_orig_edges) if self._bidirectional else out

    @property
    def edge_permutation(self) -> None:
        """None: sampled edges carry the numbers of the input already."""
        return None

    # How

    @property
    def _bidirectional(self) -> bool:
        return self.subgraph_type == SubgraphType.bidirectional

    def _batch_seed(self, *ids: Tensor) -> int:
        check = zlib.crc32(f"{self.seed} {self.epoch}".encode())
        for tensor in ids:
            check = check << 32 | zlib.crc32(tensor.contiguous().numpy().tobytes(), check & 0xFFFFFFFF)
        return check & (2**63 - 1)

    def _sample(self, batch_seed: int, seeds: Any, seed_time: Any) -> SamplerOutput | HeteroSamplerOutput:
        by_type = seeds if self.is_hetero else {None: seeds}
        times = seed_time if self.is_hetero or seed_time is None else {None: seed_time}
        none = torch.empty(0, dtype=torch.int64)
        sizes = zip(self.node_types, self.index.num_nodes)
        seeds = [check_seeds("NeighborSampler", by_type.get(t, none), num_nodes) for t, num_nodes in sizes]
        times = self._seed_times(seeds, times) if self.is_temporal else None
        raw = self.index.sample(
            seeds,
            self._fanouts,
            seed=batch_seed,
            replace=self.replace,
            temporal=self.temporal_strategy,
            window=self.window,
            seed_time=times,
            disjoint=self.disjoint,
        )
        if self.subgraph_type == SubgraphType.induced:
            raw = induced_edges(self.index, raw, times, self.window)
        return self._hetero_output(raw) if self.is_hetero else self._output(raw)

    def _seed_times(self, seeds: Sequence[Tensor], times: dict[Any, Tensor] | None) -> list[Tensor]:
        """The given times, else those of the seeds themselves where nodes have times."""
        if times is None and self.node_time is None:
            raise ValueError("NeighborSampler: input_time must be given for edge times, got None")
        result = []
        for node_type, nodes in zip(self.node_types, seeds):
            if nodes.numel() == 0:
                result.append(nodes)
            elif times is not None:
                result.append(_checked_times(times[node_type], nodes))
            else:
                time = self.node_time.get(node_type) if self.is_hetero else self.node_time
                if time is None:
                    raise ValueError(
                        f"NeighborSampler: input_time must be given for seeds without times, got None for {node_type!r}"
                    )
                result.append(time[nodes].to(torch.int64))
        return result

    @staticmethod
    def _output(raw: RawSample) -> SamplerOutput:
        row, col, edge = raw.edges[0]
        num_nodes, num_edges = (raw.num_nodes[0], raw.num_edges[0]) if raw.num_edges else (None, None)
        return SamplerOutput(raw.node[0], row, col, edge, raw.batch[0], num_nodes, num_edges)

    def _hetero_output(self, raw: RawSample) -> HeteroSamplerOutput:
        row, col, edge = zip(*raw.edges)
        return HeteroSamplerOutput(
            dict(zip(self.node_types, raw.node)),
            dict(zip(self.edge_types, row)),
            dict(zip(self.edge_types, col)),
            dict(zip(self.edge_types, edge)),
            dict(zip(self.node_types, raw.batch)) if self.disjoint else None,
            dict(zip(self.node_types, raw.num_nodes)) if raw.num_edges else None,
            dict(zip(self.edge_types, raw.num_edges)) if raw.num_edges else None,
        )

    def __repr__(self) -> str:
        return f"NeighborSampler(num_neighbors={self.num_neighbors}, seed={self.seed})"


def _checked_times(times: Tensor, seeds: Tensor) -> Tensor:
    if times.shape != seeds.shape or times.is_floating_point():
        raise ValueError(
            f"NeighborSampler: input_time must be one integer per seed, got {list(times.shape)} of {times.dtype}"
        )
    return times.to(torch.int64).contiguous()


def _prepare(edges: EdgeSet) -> SamplingIndex:
    number = {node_type: i for i, node_type in enumerate(edges.node_types)}
    relations = []
    for (source, target), (rowptr, col, perm), time, weight in zip(
        edges.end_types, edges.csc, edges.time, edges.weight
    ):
        relations.append(
            prepare_relation(
                rowptr,
                col.to(torch.int32) if edges.num_nodes[source] < 2**31 else col,
                edge_ids=perm,
                weight=weight,
                time=time,
                source_type=number[source],
                target_type=number[target],
            )
        )
    return SamplingIndex(relations, [edges.num_nodes[t] for t in edges.node_types])
