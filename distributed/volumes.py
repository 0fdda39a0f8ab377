"""Closed forms of the bytes that cross between workers in one epoch, summed over all workers.

Source: GNNPipe (arXiv 2308.10087); its logs count the same bytes.
"""

from __future__ import annotations

__all__ = ["NUMBER", "graph_level_bytes", "layer_level_bytes", "weight_sync_bytes"]

NUMBER = 4  # bytes of a float32


def layer_level_bytes(num_stages: int, num_nodes: int, hidden_dim: int, num_states: int = 1) -> int:
    """States and their gradients between stages; num_states tensors travel (2 for GCNII)."""
    return 2 * (num_stages - 1) * num_states * num_nodes * hidden_dim * NUMBER


def graph_level_bytes(num_layers: int, num_halo: float, hidden_dim: int) -> int:
    """Rows that ways read of each other, and what they send back, for num_halo pairs of a way and a remote node."""
    return round(2 * num_layers * num_halo * hidden_dim * NUMBER)


def weight_sync_bytes(num_ways: int, num_weights: int) -> int:
    """Gradients of replicated weights, reduced around a ring and handed out again."""
    return 2 * (num_ways - 1) * num_weights * NUMBER
