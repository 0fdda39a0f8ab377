"""Row pointers of 2.4 bytes per node, for graphs that are kept to be sampled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.graph.csr import CSR

__all__ = ["CompactCSR"]

_LINE_ROWS, _LINE_WORDS, _WIDE_LINES = 27, 32, 4  # RowPointers of csrc/sampling/row_pointers.h


class CompactCSR(CSR):
    """A graph that holds its row pointers in 64 bytes for 27 rows; made by ``CSR.compact()``.

    ``neighbor_sample`` reads them as they are. ``rowptr`` is worked out anew whenever it is asked for, and not kept:
    everything else works too, at the price of that.
    """

    def __init__(self, graph: CSR) -> None:
        self._lines = pack_rowptr(graph.rowptr)
        self.num_nodes = graph.num_nodes
        self.col, self.weight, self.time, self.edge_ids = graph.col, graph.weight, graph.time, graph.edge_ids

    @property
    def rowptr(self) -> Tensor:  # type: ignore[override]
        return unpack_rowptr(self._lines, self.num_nodes)

    @property
    def device(self) -> torch.device:
        return self.col.device

    @property
    def _row_pointers(self) -> Tensor:
        return self._lines

    def compact(self) -> CSR:
        return self

    def to(self, device: torch.device | str | int) -> CSR:
        return super().to(device).compact() if torch.empty(0, device=device).device != self.device else self

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._lines, self.num_nodes, self.col, self.weight, self.time, self.edge_ids)


def _rebuild(lines: Tensor, num_nodes: int, *tensors: Tensor | None) -> CompactCSR:
    graph = CompactCSR.__new__(CompactCSR)
    graph._lines, graph.num_nodes = lines, num_nodes
    graph.col, graph.weight, graph.time, graph.edge_ids = tensors  # type: ignore[assignment]
    return graph


def pack_rowptr(rowptr: Tensor) -> Tensor:
    """[num_lines, 32], int16: the rows' lines, then those with the 64-bit numbers of what does not fit 16 bits."""
    num_lines = max(-(-(rowptr.numel() - 1) // _LINE_ROWS), 1)
    padding = num_lines * _LINE_ROWS + 1 - rowptr.numel()
    ends = torch.cat([rowptr, rowptr[-1:].expand(padding)]).unfold(0, _LINE_ROWS + 1, _LINE_ROWS)
    base = ends[:, 0].clone()
    words = (ends - base[:, None]).to(torch.int16)  # the lower 16 bits
    is_wide = ends[:, -1] - base >= 2**16
    base[is_wide] = ~(num_lines + _WIDE_LINES * torch.arange(int(is_wide.sum()), device=rowptr.device))
    wide = torch.nn.functional.pad(ends[is_wide].view(torch.int16), (0, 4 * _LINE_WORDS - 4 * (_LINE_ROWS + 1)))
    lines = torch.cat([base[:, None].view(torch.int16), words], 1)
    return torch.cat([lines, wide.view(-1, _LINE_WORDS)])


def unpack_rowptr(lines: Tensor, num_nodes: int) -> Tensor:
    """[num_nodes + 1], int64."""
    num_lines = max(-(-num_nodes // _LINE_ROWS), 1)
    base = lines[:num_lines, :4].contiguous().view(torch.int64)
    ends = base + (lines[:num_lines, 4:].long() & 0xFFFF)
    is_wide = base.flatten() < 0
    wide = lines[num_lines:].reshape(-1, _WIDE_LINES * _LINE_WORDS)[:, : 4 * (_LINE_ROWS + 1)].contiguous()
    ends[is_wide] = wide.view(torch.int64)
    return torch.cat([ends[:, :-1].flatten(), ends[-1:, -1]])[: num_nodes + 1].clone()
