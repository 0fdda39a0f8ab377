"""Checks of what callers give to CSR, each raising the error that names what is wrong."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_MAX_NODES = 2**48  # rowptr would fill two pebibytes; larger ids are garbage, and overflow sizes


def checked_num_nodes(function: str, num_nodes: Any) -> int:
    try:
        count = operator.index(num_nodes)
    except TypeError:
        count = None
    if count is None or isinstance(num_nodes, bool):
        raise TypeError(f"{function}: num_nodes must be an int, got {type(num_nodes).__name__}")
    if not 0 <= count < _MAX_NODES:
        raise ValueError(f"{function}: num_nodes must be in [0, 2**48), got {count}")
    return count


def check_vector(
    name: str,
    tensor: Any,
    size: int | None,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device | None = None,
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {str(tensor.dtype).removeprefix('torch.')}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}")
    if tensor.dim() != 1 or (size is not None and tensor.numel() != size):
        raise ValueError(f"{name} must be [{'num_edges' if size is None else size}], got {list(tensor.shape)}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the other tensors, got {tensor.device}")


def check_edge_values(
    function: str, num_edges: int, device: torch.device, weight: Tensor | None, time: Tensor | None
) -> None:
    if weight is not None:
        check_vector(f"{function}: weight", weight, num_edges, _FLOATS, device)
        check_finite(f"{function}: weight", weight)
    if time is not None:
        check_vector(f"{function}: time", time, num_edges, (torch.int64,), device)


def check_finite(name: str, weight: Tensor) -> None:
    if weight.numel() == 0:
        return
    extremes = torch.stack(weight.detach().aminmax())  # a nan becomes both; no temporary of num_edges
    if not extremes.isfinite().all():
        where = int((~weight.detach().isfinite()).nonzero()[0])
        raise ValueError(f"{name} must be finite, got {weight[where].item()} at edge {where}")


def check_rows(rowptr: Tensor, num_edges: int) -> None:
    first, last = int(rowptr[0]), int(rowptr[-1])
    if first != 0 or last != num_edges:
        raise ValueError(f"CSR: rowptr must run from 0 to num_edges ({num_edges}), got {first} to {last}")
    falls = rowptr[1:] < rowptr[:-1]
    if falls.any():
        raise ValueError(f"CSR: rowptr must be ascending, got a fall after row {int(falls.nonzero()[0])}")


def check_ids(name: str, ids: Tensor, num_nodes: int) -> None:
    if ids.numel() == 0:
        return
    low, high = (int(extreme) for extreme in ids.aminmax())
    if low < 0 or high >= num_nodes:
        wrong = low if low < 0 else high
        raise ValueError(f"{name} must hold node ids in [0, {num_nodes}), got {wrong}")


def checked_edge_index(edge_index: Any, name: str = "CSR.from_edge_index: edge_index") -> Tensor:
    if not isinstance(edge_index, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(edge_index).__name__}")
    edge_index = edge_index.as_subclass(Tensor)  # PyG's EdgeIndex has rules of its own
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"{name} must be [2, num_edges], got {list(edge_index.shape)}")
    check_vector(name, edge_index[0], None, (torch.int64, torch.int32))
    return edge_index


def check_permutation(order: Any, num_nodes: int, device: torch.device) -> None:
    name = "CSR.permute: order"
    check_vector(name, order, num_nodes, (torch.int64,), device)
    check_ids(name, order, num_nodes)
    if (order.bincount(minlength=num_nodes) != 1).any():
        raise ValueError(f"{name} must hold every node id once, got duplicates")
