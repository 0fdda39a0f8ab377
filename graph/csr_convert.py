"""Graphs to and from PyG, scipy and cupy: the bodies of the methods of the same name of CSR."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gossamer.graph.csr import CSR, _col_dtype


def from_pyg(data: Any) -> CSR:
    name = "CSR.from_pyg: data"
    if hasattr(data, "edge_types"):
        raise TypeError(f"{name} must be a homogeneous Data, got {type(data).__name__}; take one edge type of it")
    if getattr(data, "edge_index", None) is not None:
        weight, time = getattr(data, "edge_weight", None), getattr(data, "edge_time", None)
        return CSR.from_edge_index(data.edge_index, data.num_nodes, weight=weight, time=time)
    if getattr(data, "adj_t", None) is not None:
        return _from_adj_t(data.adj_t)
    raise TypeError(f"{name} must have edge_index or adj_t, got {type(data).__name__} without them")


def _from_adj_t(adj_t: Any) -> CSR:
    """PyG's transposed adjacency, a torch sparse tensor or a SparseTensor: its rows are the targets, as ours."""
    if isinstance(adj_t, Tensor):
        adj_t = adj_t.to_sparse_csr()
        rowptr, col, weight = adj_t.crow_indices(), adj_t.col_indices(), adj_t.values()
    else:
        rowptr, col, weight = adj_t.csr()
    return _from_arrays(rowptr, col, weight, adj_t.shape, "CSR.from_pyg: data.adj_t")


def to_pyg(graph: CSR) -> Any:
    from torch_geometric.data import Data

    found = {"edge_weight": graph.weight, "edge_time": graph.time, "e_id": graph.edge_ids}
    values = {name: value for name, value in found.items() if value is not None}
    return Data(edge_index=graph.to_edge_index(), num_nodes=graph.num_nodes, **values)


def from_scipy(matrix: Any) -> CSR:
    import scipy.sparse

    if not scipy.sparse.issparse(matrix):
        raise TypeError(f"CSR.from_scipy: matrix must be a scipy.sparse matrix, got {type(matrix).__name__}")
    matrix = matrix.tocsr(copy=True)
    rowptr, col, values = (torch.from_numpy(array) for array in (matrix.indptr, matrix.indices, matrix.data))
    return _from_arrays(rowptr, col, values, matrix.shape, "CSR.from_scipy: matrix")


def to_scipy(graph: CSR) -> Any:
    import scipy.sparse

    arrays = (t.cpu().numpy() for t in (_values(graph), graph.col, graph.rowptr))
    return scipy.sparse.csr_array(tuple(arrays), shape=(graph.num_nodes, graph.num_nodes), copy=True)


def from_cupy(matrix: Any) -> CSR:
    _import_cupy("CSR.from_cupy")
    if not hasattr(matrix, "tocsr"):
        name = type(matrix).__name__
        raise TypeError(f"CSR.from_cupy: matrix must be a cupyx.scipy.sparse matrix, got {name}")
    matrix = matrix.tocsr()
    rowptr, col, values = (torch.from_dlpack(array) for array in (matrix.indptr, matrix.indices, matrix.data))
    return _from_arrays(rowptr, col, values, matrix.shape, "CSR.from_cupy: matrix")


def to_cupy(graph: CSR) -> Any:
    cupy, sparse = _import_cupy("CSR.to_cupy")
    if graph.device.type != "cuda":
        raise ValueError(f"CSR.to_cupy: graph must be on a GPU, got {graph.device}; move it with .to('cuda')")
    if max(graph.num_edges, graph.num_nodes) >= 2**31:
        raise ValueError(f"CSR.to_cupy: num_edges must be below 2**31, got {graph.num_edges}")
    arrays = (_values(graph), graph.col.int(), graph.rowptr.int())  # cupyx indexes with 32 bits
    return sparse.csr_matrix(tuple(map(cupy.from_dlpack, arrays)), shape=(graph.num_nodes, graph.num_nodes))


def _import_cupy(function: str) -> tuple[Any, Any]:
    try:
        import cupy
        import cupyx.scipy.sparse
    except ImportError as error:
        raise ImportError(f"{function} needs cupy and an NVIDIA GPU: pip install gossamer[cupy]") from error
    return cupy, cupyx.scipy.sparse


def _values(graph: CSR) -> Tensor:
    """Edge weights in a dtype that numpy and cupy know, ones where the graph has none."""
    if graph.weight is None:
        return torch.ones(graph.num_edges, device=graph.device)
    half = graph.weight.dtype in (torch.float16, torch.bfloat16)
    return graph.weight.detach().float() if half else graph.weight.detach()


def _from_arrays(rowptr: Tensor, col: Tensor, values: Tensor | None, shape: Any, name: str) -> CSR:
    if len(shape) != 2 or shape[0] != shape[1]:
        raise ValueError(f"{name} must be square, got {list(shape)}")
    if values is not None and (values.dim() != 1 or values.is_complex()):
        raise ValueError(f"{name} must hold one real number for each edge, got {values.dtype} {list(values.shape)}")
    if values is not None and not values.is_floating_point():
        values = None if values.dtype == torch.bool else values.float()
    num_nodes = int(shape[0])
    return CSR(rowptr.long(), col.to(_col_dtype(num_nodes)), num_nodes=num_nodes, weight=values)


def graph_of(transform: str, data: Any, weight: Tensor | None = None) -> CSR:
    """The graph of a PyG Data or Batch, in the name of a transform."""
    if not isinstance(getattr(data, "edge_index", None), Tensor):
        raise TypeError(f"{transform}: data must be a PyG Data with an edge_index, got {type(data).__name__}")
    graph = CSR.from_edge_index(data.edge_index, data.num_nodes, weight=weight)
    check_batch(transform, data, "edge_index")
    return graph


def one_graph_of(transform: str, data: Any) -> CSR:
    """The same for transforms that would mix the graphs of a batch."""
    graph, batch = graph_of(transform, data), getattr(data, "batch", None)
    if batch is not None and batch.numel() and bool((batch != batch[0]).any()):
        raise ValueError(f"{transform}: data must be one graph, got a batch of {batch.unique().numel()}")
    return graph


def check_batch(function: str, data: Any, name: str) -> None:
    """Refuse a batch with an edge from one of its graphs to another; ``name`` is the attribute with the edges."""
    batch = getattr(data, "batch", None)
    if batch is None:
        return
    num_nodes, edges = data.num_nodes, getattr(data, name)
    if not isinstance(batch, Tensor) or batch.shape != (num_nodes,):
        shape = list(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
        raise ValueError(f"{function}: data.batch must have one entry for each of {num_nodes} nodes, got {shape}")
    ends = batch[edges.long()]
    crossing = (ends[0] != ends[1]).nonzero()
    if len(crossing):
        edge, graphs = edges[:, crossing[0, 0]].tolist(), ends[:, crossing[0, 0]].tolist()
        raise ValueError(
            f"{function}: data.{name} must join nodes of the same graph, got {edge[0]} -> {edge[1]} from graph "
            f"{graphs[0]} to graph {graphs[1]}"
        )
