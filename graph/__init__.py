"""Graphs: structure, aggregation, layers, sampling and rewiring."""

import gossamer  # noqa: F401  (loads the operators)
from gossamer.graph.aggregate import aggregate, gcn_aggregate
from gossamer.graph.csr import CSR
from gossamer.graph.partition import chunk_order, partition

__all__ = ["CSR", "aggregate", "chunk_order", "gcn_aggregate", "partition"]
