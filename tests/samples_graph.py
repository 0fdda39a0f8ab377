"""Small valid calls of gossamer.graph (see samples.py)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from gossamer import graph as g

from sample_tools import FLOATS, INDICES, Arguments, floats, ids, integer, pick, sample


def graph_arguments(generator: Generator) -> Arguments:
    """Up to 12 nodes and 40 edges; loops, repeated edges, nodes without edges and no edges at all occur."""
    num_nodes = integer(generator, 1, 12)
    edges = ids(generator, num_nodes, 2, integer(generator, 0, 40))
    graph = g.CSR.from_edge_index(edges, num_nodes)
    return {"rowptr": graph.rowptr, "col": graph.col.to(pick(generator, *INDICES)), "num_nodes": num_nodes}


def with_edge_values(generator: Generator) -> Arguments:
    made = graph_arguments(generator)
    num_edges = len(made["col"])
    return {**made, "weight": torch.rand(num_edges, generator=generator), "time": ids(generator, 20, num_edges)}


def csr(rowptr: Any, col: Any, num_nodes: Any, weight: Any = None, time: Any = None) -> g.CSR:
    return g.CSR(rowptr, col, num_nodes=num_nodes, weight=weight, time=time)


def features_of(generator: Generator) -> Arguments:
    made = graph_arguments(generator)
    dtype = pick(generator, *FLOATS)
    return {**made, "x": floats(generator, made["num_nodes"], integer(generator, 1, 20), dtype=dtype)}


def seeds_of(generator: Generator, made: Arguments) -> Tensor:
    return torch.randperm(made["num_nodes"], generator=generator)[: integer(generator, 0, made["num_nodes"])]


@sample("CSR", with_edge_values)
def _(**graph: Any) -> Any:
    return csr(**graph).transpose().col


@sample(
    "CSR.from_edge_index", lambda r: {"edge_index": ids(r, 9, 2, integer(r, 0, 30)), "num_nodes": pick(r, 9, 12, None)}
)
def _(edge_index: Any, num_nodes: Any) -> Any:
    return g.CSR.from_edge_index(edge_index, num_nodes).col


@sample("aggregate", lambda r: {**features_of(r), "reduce": pick(r, "sum", "mean", "max", "min")})
def _(x: Any, reduce: Any, **graph: Any) -> Any:
    return g.aggregate(csr(**graph), x, reduce=reduce)


@sample("gcn_aggregate", lambda r: {**features_of(r), "alpha": pick(r, 0.0, 0.1, 1.0)})
def _(x: Any, alpha: Any, **graph: Any) -> Any:
    return g.gcn_aggregate(csr(**graph), x, residual=x, alpha=alpha)


@sample("gated_sum", features_of)
def _(x: Any, **graph: Any) -> Any:
    return g.gated_sum(csr(**graph), x, x, x)


def dropped(r: Generator) -> Arguments:
    x = floats(r, integer(r, 0, 12), integer(r, 0, 20), dtype=pick(r, *FLOATS))
    return {"x": x, "p": pick(r, 0.0, 0.3, 0.9), "seed": integer(r, 0, 99), "step": integer(r, 0, 9),
            "node_ids": pick(r, None, ids(r, 100, len(x))), "first_row": integer(r, 0, 5)}  # fmt: skip


@sample("node_dropout", dropped)
def _(**arguments: Any) -> Any:
    return g.node_dropout(**arguments)


@sample("relu_dropout", dropped)
def _(**arguments: Any) -> Any:
    return g.relu_dropout(**arguments)


@sample(
    "quantize_rows", lambda r: {"x": floats(r, integer(r, 0, 9), integer(r, 0, 20)), "bits": pick(r, 4, 8), "seed": 1}
)
def _(x: Any, bits: Any, seed: Any) -> Any:
    return g.quantize_rows(x, bits, seed=seed)


def quantized(r: Generator) -> Arguments:
    width, bits = integer(r, 0, 20), pick(r, 4, 8)
    codes, scale = g.quantize_rows(floats(r, integer(r, 0, 9), width), bits, seed=1)
    return {"codes": codes, "scale": scale, "num_features": width, "bits": bits}


@sample("dequantize_rows", quantized)
def _(**arguments: Any) -> Any:
    return g.dequantize_rows(**arguments)


def sampled(r: Generator) -> Arguments:
    made = with_edge_values(r)
    seeds = seeds_of(r, made)
    temporal = pick(r, None, "uniform", "last", "recency")
    return {
        **made, "seeds": seeds, "fanouts": [pick(r, -1, 1, 2, 0.5, 30) for _ in range(integer(r, 1, 3))],
        "seed": integer(r, 0, 99), "replace": pick(r, False, True),
        "weighted": temporal != "last" and pick(r, False, True),
        "seed_time": None if temporal is None else ids(r, 25, len(seeds)), "temporal": temporal or "uniform",
        "window": None if temporal is None else pick(r, None, 5), "disjoint": pick(r, False, True),
    }  # fmt: skip


@sample("neighbor_sample", sampled)
def _(rowptr: Any, col: Any, num_nodes: Any, weight: Any, time: Any, seeds: Any, fanouts: Any, **options: Any) -> Any:
    if options["temporal"] == "last":
        options["replace"] = False
    return g.neighbor_sample(csr(rowptr, col, num_nodes, weight, time), seeds, fanouts, **options).node


def ranked(r: Generator) -> Arguments:
    made = graph_arguments(r)
    return {**made, "seeds": seeds_of(r, made), "top_k": integer(r, 1, 5), "alpha": pick(r, 0.15, 0.5, 0.9)}


@sample("ppr_neighbors", lambda r: {**ranked(r), "eps": pick(r, 1e-2, 1e-4)})
def _(seeds: Any, top_k: Any, alpha: Any, eps: Any, **graph: Any) -> Any:
    return g.ppr_neighbors(csr(**graph), seeds, top_k=top_k, alpha=alpha, eps=eps)


@sample("walk_neighbors", lambda r: {**ranked(r), "num_walks": integer(r, 1, 9), "num_steps": integer(r, 1, 3)})
def _(seeds: Any, top_k: Any, alpha: Any, num_walks: Any, num_steps: Any, **graph: Any) -> Any:
    return g.walk_neighbors(
        csr(**graph), seeds, top_k=top_k, alpha=alpha, seed=0, num_walks=num_walks, num_steps=num_steps
    )


@sample("k_hop", lambda r: {**graph_arguments(r), "max_hops": integer(r, 1, 6), "directed": pick(r, False, True)})
def _(max_hops: Any, directed: Any, **graph: Any) -> Any:
    return [shell.col for shell in g.k_hop(csr(**graph), max_hops, directed=directed)]


def symmetric(r: Generator) -> Arguments:
    num_nodes = integer(r, 2, 10)
    edges = ids(r, num_nodes, 2, integer(r, 1, 20))
    edges = edges[:, edges[0] != edges[1]]
    graph = g.CSR.from_edge_index(torch.cat([edges, edges.flip(0)], 1).unique(dim=1), num_nodes)
    return {"rowptr": graph.rowptr, "col": graph.col, "num_nodes": num_nodes}


@sample("balanced_forman_curvature", symmetric)
def _(**graph: Any) -> Any:
    return g.balanced_forman_curvature(csr(**graph))


@sample("sdrf", lambda r: {**symmetric(r), "num_iterations": integer(r, 0, 4), "tau": pick(r, 0.5, 1.0, float("inf"))})
def _(num_iterations: Any, tau: Any, **graph: Any) -> Any:
    return g.sdrf(csr(**graph), num_iterations, tau=tau)


@sample("fosr", lambda r: {**symmetric(r), "num_edges": integer(r, 0, 4)})
def _(num_edges: Any, **graph: Any) -> Any:
    return g.fosr(csr(**graph), num_edges, num_power_iterations=3)


@sample("CompressedCSR", lambda r: {**symmetric(r), "fanout": integer(r, 1, 3)})
def _(fanout: Any, **graph: Any) -> Any:
    packed = g.CompressedCSR.from_csr(csr(**graph))
    return g.neighbor_sample(packed, torch.arange(1), [fanout], seed=0).node


@sample(
    "DRew", lambda r: {**symmetric(r), "num_layers": integer(r, 1, 3), "delay": pick(r, 1, 2), "x": floats(r, 16, 8)}
)
def _(num_layers: Any, delay: Any, x: Any, **graph: Any) -> Any:
    built = csr(**graph)
    model = g.DRew(8, 8, 3, num_layers, delay=delay).eval()
    return model(x[: built.num_nodes], g.k_hop(built, num_layers))


@sample("group_and_slice", lambda r: {"group_ids": ids(r, 5, integer(r, 0, 20)), "slice_size": integer(r, 1, 4)})
def _(**arguments: Any) -> Any:
    return g.group_and_slice(**arguments)


@sample(
    "event_sequences",
    lambda r: (
        lambda made: {
            **made,
            "seeds": (seeds := seeds_of(r, made)),
            "seed_time": ids(r, 25, len(seeds)),
            "max_events": integer(r, 1, 5),
        }
    )(with_edge_values(r)),
)
def _(seeds: Any, seed_time: Any, max_events: Any, **graph: Any) -> Any:
    return g.event_sequences(csr(**graph), seeds, seed_time, max_events)


@sample("densify", lambda r: {**graph_arguments(r), "embeddings": floats(r, 12, 4), "num_neighbors": integer(r, 1, 4)})
def _(embeddings: Any, num_neighbors: Any, **graph: Any) -> Any:
    built = csr(**graph)
    return g.densify(built, embeddings[: built.num_nodes], num_neighbors=num_neighbors).col


@sample("random_walk_pe", lambda r: {**symmetric(r), "num_steps": integer(r, 1, 5)})
def _(num_steps: Any, **graph: Any) -> Any:
    return g.random_walk_pe(csr(**graph), num_steps)
