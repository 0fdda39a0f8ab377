"""The raw files of the citation graphs Cora, CiteSeer and PubMed (ind.<name>.x, .y, .graph, ...), as published.

They are pickles; the reader builds arrays, lists and dictionaries only, so that a file cannot run code.
"""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["PARTS", "read_planetoid"]

PARTS = ("x", "tx", "allx", "y", "ty", "ally", "graph", "test.index")
_NUM_VALIDATION = 500


def read_planetoid(folder: Path, name: str) -> dict[str, Tensor]:
    """edge_index, x, y and the masks of the standard split.

    Source: Yang et al. 2016, Revisiting Semi-Supervised Learning with Graph Embeddings; split and order of the
    nodes as Kipf and Welling 2017 use them.
    """
    parts = {part: _read(folder / f"ind.{name}.{part}") for part in PARTS}
    test = parts["test.index"]
    first = len(parts["allx"])
    num_nodes = max(int(test.max()) + 1, len(parts["graph"]))
    # The rows of tx belong to the nodes of test.index; nodes that it skips (in CiteSeer) have no features.
    x, y = (np.zeros((num_nodes, parts[all_].shape[1]), parts[all_].dtype) for all_ in ("allx", "ally"))
    x[:first], x[test] = parts["allx"], parts["tx"]
    y[:first], y[test] = parts["ally"], parts["ty"]
    num_train = len(parts["y"])
    return {
        "edge_index": _edges(parts["graph"]),
        "x": torch.from_numpy(x).float(),
        "y": torch.from_numpy(y.argmax(1)),
        "train_mask": _mask(torch.arange(num_train), num_nodes),
        "val_mask": _mask(torch.arange(num_train, num_nodes)[:_NUM_VALIDATION], num_nodes),
        "test_mask": _mask(torch.from_numpy(test), num_nodes),
    }


def _edges(neighbors: dict[int, list[int]]) -> Tensor:
    """[2, num_edges] without self loops and duplicates."""
    pairs = sorted({(source, target) for source, targets in neighbors.items() for target in targets})
    return torch.tensor([pair for pair in pairs if pair[0] != pair[1]]).T


def _mask(ids: Tensor, num_nodes: int) -> Tensor:
    return torch.zeros(num_nodes, dtype=torch.bool).index_fill_(0, ids, True)


def _read(path: Path) -> Any:
    if path.name.endswith("test.index"):
        return np.loadtxt(path, dtype=np.int64)
    with path.open("rb") as file:
        value = _DataUnpickler(file, encoding="latin1").load()
    return value.dense() if isinstance(value, _SparseRows) else value


class _SparseRows:
    """Stands in for the scipy matrix of the files."""

    data: np.ndarray
    indices: np.ndarray
    indptr: np.ndarray
    _shape: tuple[int, int]

    def dense(self) -> np.ndarray:
        out = np.zeros(self._shape, self.data.dtype)
        rows = np.repeat(np.arange(self._shape[0]), np.diff(self.indptr))
        out[rows, self.indices] = self.data
        return out


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes; other encodings (some of them decompress) stay out."""
    return text.encode("latin1")


_ALLOWED = {
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("_codecs", "encode"): _latin1,
    ("scipy.sparse.csr", "csr_matrix"): _SparseRows,
    ("collections", "defaultdict"): collections.defaultdict,
    ("__builtin__", "list"): list,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, which is no plain data")
        return _ALLOWED[module, name]
