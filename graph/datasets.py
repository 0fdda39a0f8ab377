"""Node classification data: built-in graphs and files, all read without executing anything in them."""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gossamer._arguments import typed
from gossamer.graph.csr import CSR
from gossamer.graph.planetoid import PARTS, read_planetoid

__all__ = ["Dataset", "data_roots", "load_dataset"]

_MASKS = ("train_mask", "val_mask", "test_mask")
_DIGITS_NEIGHBORS = 8
_DIGITS_TRAIN, _DIGITS_VALIDATION = 20, 30  # nodes of each class; the rest is for testing


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """A graph whose nodes have features and a class.

    Args:
        name: what it is called.
        graph: the edges.
        features: [num_nodes, num_features], float32, finite.
        labels: [num_nodes], int64, in [0, num_classes).
        train_mask, val_mask, test_mask: [num_nodes] or [num_nodes, num_splits], bool.
        num_classes: number of classes.
    """

    name: str
    graph: CSR
    features: Tensor
    labels: Tensor
    train_mask: Tensor
    val_mask: Tensor
    test_mask: Tensor
    num_classes: int

    @property
    def num_splits(self) -> int:
        """Number of splits that the masks hold."""
        return 1 if self.train_mask.dim() == 1 else self.train_mask.shape[1]

    @property
    def masks(self) -> dict[str, Tensor]:
        """The three masks by name: train, val, test."""
        return {"train": self.train_mask, "val": self.val_mask, "test": self.test_mask}

    def split(self, index: int) -> Dataset:
        """The same data with masks [num_nodes] of one of its splits."""
        if not 0 <= index < self.num_splits:
            raise ValueError(f"Dataset.split: index must be in [0, {self.num_splits}), got {index}")
        masks = {name: getattr(self, name).reshape(self.graph.num_nodes, -1)[:, index] for name in _MASKS}
        return dataclasses.replace(self, **masks)

    def to(self, device: torch.device | str | int) -> Dataset:
        """The data on a device."""
        movable = ("graph", "features", "labels", *_MASKS)
        return dataclasses.replace(self, **{name: getattr(self, name).to(device) for name in movable})

    def __repr__(self) -> str:
        sizes = f"num_features={self.features.shape[1]}, num_classes={self.num_classes}, num_splits={self.num_splits}"
        return f"Dataset({self.name!r}, {self.graph!r}, {sizes})"


@typed
def load_dataset(
    name_or_path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
    row_normalize: bool = False,
) -> Dataset:
    """Load a built-in data set, or a file.

    Args:
        name_or_path: ``digits`` (the digits of scikit-learn as a nearest-neighbour graph; needs no files);
            ``cora`` or ``citeseer`` (the raw planetoid files); ``squirrel`` or ``chameleon`` (one .npz file each);
            or a path: an .npz with edge_index [2, E], x [N, F], y [N], train_mask, val_mask and test_mask
            [N] or [N, splits], or node_features, node_labels, edges [E, 2], train_masks, val_masks and
            test_masks [splits, N]; or a .pt, a PyG ``Data`` or a dictionary with the keys of the first kind.
        root: folder to look in for the named files, before $GOSSAMER_DATA, ./data and ../shared/data. Each may
            hold the files themselves, in a folder planetoid or heterophilous, or in PyG's folders.
        row_normalize: divide the features of each node by the sum of their magnitudes.

    Raises:
        FileNotFoundError: if the files are not there; the message lists where they would be found.
        ValueError: if a file is damaged, holds something else or fits no graph.
        ImportError: if ``digits`` is asked for and scikit-learn is not installed.
    """
    name = os.fspath(name_or_path)
    if name in _BUILT_IN:
        arrays = _BUILT_IN[name](name, root)
    elif os.path.isfile(name):
        arrays = _read_file(Path(name))
    elif os.path.exists(name):
        raise ValueError(f"load_dataset: name_or_path must be a file or one of {_names()}, got the folder {name!r}")
    else:
        raise FileNotFoundError(f"load_dataset: name_or_path must be {_names()} or an existing file, got {name!r}")
    dataset = _checked(Path(name).stem, arrays)
    return dataclasses.replace(dataset, features=_row_normalized(dataset.features)) if row_normalize else dataset


def _names() -> str:
    return ", ".join(_BUILT_IN)


def _row_normalized(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features, p=1.0, dim=1)


# Built-in


def _digits(name: str, root: Any) -> dict[str, Any]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("load_dataset: digits needs scikit-learn: pip install gossamer[train]") from error
    images, labels = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
    graph = _nearest_neighbors(images, _DIGITS_NEIGHBORS)
    return {"graph": graph, "x": images.float() / 16, "y": labels.long(), **_stratified_split(labels)}


def _nearest_neighbors(points: Tensor, k: int) -> CSR:
    """Each point and its k nearest, both ways. Equal distances go by id: the pixels are integers, so sums are exact."""
    squares = points.square().sum(1)
    distance = squares[:, None] - 2 * points @ points.T + squares
    distance.fill_diagonal_(torch.inf)
    nearest = distance.sort(dim=1, stable=True).indices[:, :k]
    target = torch.arange(len(points)).repeat_interleave(k)
    return CSR.from_edge_index(torch.stack([nearest.flatten(), target]), len(points)).to_symmetric()


def _stratified_split(labels: Tensor) -> dict[str, Tensor]:
    masks = {name: torch.zeros(len(labels), dtype=torch.bool) for name in _MASKS}
    generator = torch.Generator().manual_seed(0)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        sizes = [_DIGITS_TRAIN, _DIGITS_VALIDATION, len(members) - _DIGITS_TRAIN - _DIGITS_VALIDATION]
        for mask, part in zip(masks.values(), members.split(sizes)):
            mask[part] = True
    return masks


def _planetoid(name: str, root: Any) -> dict[str, Any]:
    files = [f"ind.{name}.{part}" for part in PARTS]
    pyg_name = {"cora": "Cora", "citeseer": "CiteSeer", "pubmed": "PubMed"}[name]
    layouts = ("", "planetoid", "raw", f"{name}/raw", f"{pyg_name}/raw", f"planetoid/{pyg_name}/raw")
    hint = f"torch_geometric.datasets.Planetoid(root, {pyg_name!r}) downloads them"
    folder = _find(name, root, layouts, files, hint)
    try:
        return read_planetoid(folder, name)
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"load_dataset: {folder} must hold the planetoid files of {name}, got {error}") from error


def _heterophilous(name: str, root: Any) -> dict[str, Any]:
    hint = "the repository yandex-research/heterophilous-graphs has them in its folder data"
    folder = _find(name, root, ("", "heterophilous", f"{name}/raw"), [f"{name}.npz"], hint)
    return _read_file(folder / f"{name}.npz")


_BUILT_IN: dict[str, Callable[[str, Any], dict[str, Any]]] = {
    "digits": _digits,
    "cora": _planetoid,
    "citeseer": _planetoid,
    "pubmed": _planetoid,
    "squirrel": _heterophilous,
    "chameleon": _heterophilous,
}


def data_roots(root: str | os.PathLike[str] | None = None) -> Iterator[Path]:
    """Where data sets are looked for: in root, in $GOSSAMER_DATA, ./data and ../shared/data."""
    if root is not None:
        yield Path(root)
    if os.environ.get("GOSSAMER_DATA"):
        yield Path(os.environ["GOSSAMER_DATA"])
    yield Path("data")
    yield Path("../shared/data")


def _find(name: str, root: Any, layouts: tuple[str, ...], files: list[str], hint: str) -> Path:
    folders = [base / layout for base in data_roots(root) for layout in layouts]
    for folder in folders:
        if all((folder / file).is_file() for file in files):
            return folder
    tried = "\n  ".join(str(folder.absolute()) for folder in folders)
    wanted = ", ".join(files)
    raise FileNotFoundError(
        f"load_dataset: the files of {name} must be in one of the folders below, got none of them ({hint}).\n"
        f"Files: {wanted}\nFolders:\n  {tried}"
    )


# Files


def _read_file(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in (".pt", ".pth"):
        return read_torch(path)
    raise ValueError(f"load_dataset: name_or_path must end in .npz or .pt, got {str(path)!r}")


def _read_npz(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, TypeError) as error:
        raise ValueError(f"load_dataset: {path} must be an .npz of plain arrays, got {error}") from error
    if "edges" not in arrays:
        return arrays
    missing = [key for key in ("node_features", "node_labels", *(f"{m}s" for m in _MASKS)) if key not in arrays]
    if missing:
        raise ValueError(f"load_dataset: {path} must hold {', '.join(missing)} beside edges")
    masks = {mask: arrays[f"{mask}s"].T for mask in _MASKS}
    undirected = CSR.from_edge_index(arrays["edges"].T, len(arrays["node_labels"])).to_symmetric()
    return {"graph": undirected, "x": arrays["node_features"], "y": arrays["node_labels"], **masks}


def read_torch(path: Path, *, function: str = "load_dataset", mmap: bool = False) -> dict[str, Any]:
    """A dictionary of tensors, a PyG Data, or what PyG's InMemoryDataset writes to processed/data.pt."""
    try:
        with torch.serialization.safe_globals(_pyg_classes()):
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # a damaged file raises anything
        raise ValueError(
            f"{function}: {path} must load without executing code (a PyG Data or a dictionary of tensors), "
            f"got {type(error).__name__} {str(error).partition('.')[0]}"
        ) from error
    if isinstance(value, tuple) and value:
        if len(value) > 1 and value[1]:
            raise ValueError(f"{function}: {path} must hold one graph, got a collection of them")
        value = value[0]
    value = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(value, dict):
        raise ValueError(f"{function}: {path} must hold a PyG Data or a dictionary, got {type(value).__name__}")
    return value


def _pyg_classes() -> list[Any]:
    """What a saved Data is made of; without PyG, only dictionaries can be read."""
    try:
        from torch_geometric.data import data, storage
    except ImportError:
        return []
    return [data.Data, data.DataEdgeAttr, data.DataTensorAttr, storage.GlobalStorage]


# Checks


def _checked(name: str, arrays: dict[str, Any]) -> Dataset:
    needed = ("x", "y", *_MASKS, *(() if "graph" in arrays else ("edge_index",)))
    for key in needed:
        if not isinstance(arrays.get(key), Tensor):
            raise ValueError(f"load_dataset: {name} must hold a tensor {key}, got {type(arrays.get(key)).__name__}")
    features, labels = arrays["x"].float(), arrays["y"]
    num_nodes = len(features)
    if features.dim() != 2 or not features.isfinite().all():
        raise ValueError(f"load_dataset: x of {name} must be finite [N, F], got {list(features.shape)}")
    if labels.shape != (num_nodes,) or labels.is_floating_point() or (num_nodes and int(labels.min()) < 0):
        raise ValueError(f"load_dataset: y of {name} must be [{num_nodes}] classes from 0, got {_describe(labels)}")
    masks = {mask: arrays[mask] for mask in _MASKS}
    for mask, value in masks.items():
        if value.dtype != torch.bool or value.dim() not in (1, 2) or len(value) != num_nodes:
            raise ValueError(
                f"load_dataset: {mask} of {name} must be bool [{num_nodes}] or [{num_nodes}, splits], "
                f"got {_describe(value)}"
            )
    if len({value.shape for value in masks.values()}) > 1:
        raise ValueError(f"load_dataset: the masks of {name} must have one shape, got several")
    graph = arrays["graph"] if "graph" in arrays else CSR.from_edge_index(arrays["edge_index"], num_nodes)
    num_classes = int(labels.max()) + 1 if num_nodes else 0
    masks = {mask: value.contiguous() for mask, value in masks.items()}
    return Dataset(name, graph, features, labels.long(), **masks, num_classes=num_classes)


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
