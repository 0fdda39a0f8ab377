"""What ``initialize`` asks of its arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gossamer.graph import CSR, HopGraph

__all__ = ["check_data", "check_dtype", "check_labels"]


def check_data(graph: CSR | HopGraph, features: Tensor, labels: Tensor, masks: dict[str, Tensor]) -> None:
    """Shapes, dtypes and values of what ``initialize`` is given."""
    n = graph.num_nodes
    if features.dim() != 2 or features.shape[0] != n:
        raise ValueError(f"initialize: features must be [{n}, num_features], got {list(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"initialize: features must be floating point, got {features.dtype}")
    if not torch.isfinite(features).all():
        bad = (~torch.isfinite(features)).any(dim=1).nonzero()[0].item()
        raise ValueError(f"initialize: features must be finite, got a NaN or infinity at node {bad}")
    if labels.shape[:1] != (n,):
        raise ValueError(f"initialize: labels must have {n} rows, got {list(labels.shape)}")
    if "train" not in masks:
        raise ValueError(f"initialize: masks must hold 'train', got {sorted(masks)}")
    if graph.weight is not None and graph.weight.requires_grad:
        raise ValueError("initialize: graph.weight must not require a gradient, got a learned weight")
    for name, mask in masks.items():
        if mask.shape != (n,) or mask.dtype != torch.bool:
            raise ValueError(f"initialize: masks[{name!r}] must be bool [{n}], got {mask.dtype} {list(mask.shape)}")
    if not masks["train"].any():
        raise ValueError("initialize: masks['train'] must mark at least one node, got none")


def check_labels(labels: Tensor, num_classes: int) -> None:
    """Labels of the default loss."""
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise TypeError(f"initialize: labels must be int64 [N], got {labels.dtype} {list(labels.shape)}")
    if not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        found = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(f"initialize: labels must be in [0, {num_classes}), got {found}")


def check_dtype(features: Tensor, layers: list[nn.Module]) -> None:
    """Features are of the model's dtype."""
    dtypes = {p.dtype for layer in layers for p in layer.parameters() if p.is_floating_point()}
    if dtypes and features.dtype not in dtypes:
        raise TypeError(f"initialize: features must be of the model's {dtypes.pop()}, got {features.dtype}")
