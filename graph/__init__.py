"""Graphs: structure, aggregation, layers, sampling and rewiring."""

from typing import TYPE_CHECKING, Any

import gossamer  # noqa: F401  (loads the operators)
from gossamer.graph.adaptive_fanout import AdaptiveFanout
from gossamer.graph.aggregate import aggregate, gcn_aggregate
from gossamer.graph.cold_start import densify
from gossamer.graph.compressed import CompressedCSR
from gossamer.graph.csr import CSR
from gossamer.graph.datasets import Dataset, load_dataset
from gossamer.graph.drew import DRew, drew_width
from gossamer.graph.drew_layers import DRewGatedGCNConv, DRewGCNConv, DRewGINConv
from gossamer.graph.dropout import node_dropout, relu_dropout
from gossamer.graph.event_sequence import EventSequences, event_sequences
from gossamer.graph.forward_gnn import (
    ForwardLayer,
    forward_gnn,
    local_optimizers,
    predict_locally,
    train_greedily,
    train_together,
)
from gossamer.graph.gated_sum import gated_sum
from gossamer.graph.grouping import group_and_slice
from gossamer.graph.hetero import HeteroCSR, hetero_ppr_neighbors, hetero_walk_neighbors
from gossamer.graph.hop_graph import DRewLayer, HopGraph
from gossamer.graph.id_embedding import IDEmbedding, RowwiseAdagrad
from gossamer.graph.k_hop import k_hop, k_hop_count, k_hop_pairs
from gossamer.graph.k_hop_transform import KHop, hop_edge_attr, hop_shells, prepare_shells
from gossamer.graph.layers import (
    ForgetInitial,
    GCN2Conv,
    GCNConv,
    GraphLayer,
    GraphSequential,
    KeepInitial,
    NodeDropout,
    ReLUDropout,
    ResidualBlock,
    SAGEConv,
)
from gossamer.graph.loader import LoaderProgress, SampleLoader
from gossamer.graph.loader_source import SampledBatch
from gossamer.graph.local_objectives import ForwardForward, LocalObjective, SingleForward
from gossamer.graph.models import GCN, GCNII, GraphSAGE, ResGCN
from gossamer.graph.partition import chunk_order, halo, partition
from gossamer.graph.positional import LaplacianPE, RandomWalkPE, laplacian_pe, random_walk_pe
from gossamer.graph.ppr import ppr_neighbors, walk_neighbors
from gossamer.graph.quantize import dequantize_rows, quantize_rows
from gossamer.graph.queue import SharedMemoryQueue
from gossamer.graph.rewiring import balanced_forman_curvature, fosr, sdrf
from gossamer.graph.rewiring_transforms import SDRF, FoSR, TwoHop
from gossamer.graph.sampled_sage import SampledSAGE
from gossamer.graph.sampling import SampledSubgraph, neighbor_sample
from gossamer.graph.shell_file import load_shells, save_shells
from gossamer.graph.spn import SPN, MergedShells, SPNConv, merge_shells
from gossamer.graph.temporal import TemporalEncoder, TemporalSAGE, long_term_loss, prefix_causal_mask
from gossamer.graph.top_to_input import TopDownLayer, TopToInput, top_down_gnn

__all__ = [
    "CSR", "CompressedCSR", "chunk_order", "halo", "partition", "Dataset", "load_dataset",
    "aggregate", "gcn_aggregate", "gated_sum", "node_dropout", "relu_dropout", "quantize_rows", "dequantize_rows",
    "GraphLayer", "GraphSequential", "GCNConv", "SAGEConv", "GCN2Conv", "ResidualBlock", "KeepInitial",
    "ForgetInitial", "NodeDropout", "ReLUDropout",
    "GCN", "GraphSAGE", "GCNII", "ResGCN",
    "TopDownLayer", "TopToInput", "top_down_gnn",
    "ForwardLayer", "forward_gnn", "LocalObjective", "SingleForward", "ForwardForward",
    "train_greedily", "train_together", "predict_locally", "local_optimizers",
    "SampledSubgraph", "neighbor_sample", "ppr_neighbors", "walk_neighbors", "AdaptiveFanout", "group_and_slice",
    "densify", "HeteroCSR", "hetero_ppr_neighbors", "hetero_walk_neighbors",
    "SampledSAGE", "TemporalSAGE", "TemporalEncoder", "prefix_causal_mask", "long_term_loss", "EventSequences",
    "event_sequences", "IDEmbedding", "RowwiseAdagrad",
    "SharedMemoryQueue", "SampleLoader", "SampledBatch", "LoaderProgress",
    "k_hop", "k_hop_count", "k_hop_pairs",
    "KHop", "hop_shells", "hop_edge_attr", "prepare_shells", "load_shells", "save_shells",
    "DRew", "DRewGCNConv", "DRewGINConv", "DRewGatedGCNConv", "drew_width", "DRewLayer", "HopGraph",
    "SPN", "SPNConv", "MergedShells", "merge_shells",
    "balanced_forman_curvature", "sdrf", "fosr", "SDRF", "FoSR", "TwoHop",
    "random_walk_pe", "laplacian_pe", "RandomWalkPE", "LaplacianPE",
]  # fmt: skip

if TYPE_CHECKING:
    from gossamer.graph.pyg_sampler import NeighborSampler as NeighborSampler


def __getattr__(name: str) -> Any:
    """NeighborSampler is a class of PyG's kind: PyG is imported when it is asked for."""
    if name == "NeighborSampler":
        from gossamer.graph.pyg_sampler import NeighborSampler

        return NeighborSampler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
