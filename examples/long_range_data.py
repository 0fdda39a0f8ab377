"""The tasks of train_long_range.py: RingTransfer, TU sets, the Long Range Graph Benchmark, QM9.

RingTransfer is made. The others are looked for in the folders of gossamer.graph.datasets.data_roots, and fetched by
PyG's dataset classes where they are not there.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gossamer.graph.datasets import data_roots

from graph_sets import GraphSet, stratified_splits
from objectives import Classification, ContactPrediction, MultiLabel, Objective, Regression, WeightedClassification
from ring_transfer import NUM_CLASSES, ring_edges, ring_features

__all__ = ["DATASETS", "Task", "load_task"]

RINGS = {"train": 1600, "val": 200, "test": 200}
TU = {"enzymes": "ENZYMES", "mutag": "MUTAG", "nci1": "NCI1", "proteins": "PROTEINS"}
PEPTIDES = {"peptides-func": MultiLabel, "peptides-struct": Regression}
CONTACTS = "pcqm-contact"
SUPERPIXELS = {"pascalvoc-sp": 21, "coco-sp": 81}
ATOM_CATEGORIES = (119, 5, 12, 12, 10, 6, 6, 2, 2)  # of the Open Graph Benchmark, for x of Peptides and PCQM
QM9_TARGETS = 12  # dipole moment to heat capacity; the columns behind are derived from these


@dataclass(frozen=True, eq=False)
class Task:
    """Graphs and what is asked of them.

    Attributes:
        graphs: the data set.
        objective: loss and metric.
        num_outputs: of the model; None for as many as the states are wide.
        readout: which rows answer: "mean" of every graph, its "first" node, or every "node".
        categories: number of values of each column of x; empty where x are numbers.
    """

    graphs: GraphSet
    objective: Objective
    num_outputs: int | None
    readout: str = "mean"
    categories: tuple[int, ...] = ()


def load_task(dataset: str, *, root: str | None = None, seed: int = 0, size: int = 10, target: int = 0) -> Task:
    """A task by name.

    Args:
        dataset: one of DATASETS.
        root: folder to look in before the usual ones, and to fetch into; None fetches into ./data.
        seed: of the splits of TU sets and QM9; the others have theirs.
        size: nodes of a ring of RingTransfer, even and at least 4.
        target: column of QM9, in [0, 12).

    Raises:
        FileNotFoundError: if the files are not there and cannot be fetched; the message says what belongs where.
        ValueError: if a name or number is wrong, or a file is damaged.
    """
    if dataset == "ring-transfer":
        return _ring_transfer(size)
    if dataset in TU:
        return _tu(TU[dataset], root, seed)
    if dataset in PEPTIDES:
        return _peptides(dataset, root)
    if dataset == CONTACTS:
        return _contacts(root)
    if dataset in SUPERPIXELS:
        return _superpixels(dataset, root)
    if dataset == "qm9":
        return _qm9(root, seed, target)
    raise ValueError(f"load_task: dataset must be one of {', '.join(DATASETS)}, got {dataset!r}")


DATASETS = ("ring-transfer", *TU, *PEPTIDES, CONTACTS, *SUPERPIXELS, "qm9")


def _ring_transfer(size: int) -> Task:
    """Rings with balanced classes, the same number of each in every split."""
    if size < 4 or size % 2:
        raise ValueError(f"load_task: size must be even and at least 4, got {size}")
    labels = torch.cat([torch.arange(count) * NUM_CLASSES // count for count in RINGS.values()])
    ptr = torch.arange(len(labels) + 1)
    splits = dict(zip(RINGS, torch.arange(len(labels)).split(list(RINGS.values()))))
    x, edges = ring_features(size, labels), ring_edges(size, len(labels))
    graphs = GraphSet(x, edges, ptr * size, ptr * (2 * size), labels, splits)
    return Task(graphs, Classification(), NUM_CLASSES, readout="first")


def _tu(name: str, root: str | None, seed: int) -> Task:
    text = [base / where / f"{name}.txt" for base in data_roots(root) for where in ("", "tu")]
    path = next((path for path in text if path.is_file()), None)
    if path is not None:
        graphs = _read_tu_text(path)
    else:

        def make(folder: Path) -> Any:
            from torch_geometric.datasets import TUDataset

            return TUDataset(str(folder), name)

        files = (f"{name}/processed/data.pt", f"{name}/raw/{name}_A.txt")
        graphs = GraphSet.from_pyg({"all": _open_pyg(name, root, make, name, files, f"{name}.txt or ")})
    graphs = replace(graphs, splits=stratified_splits(graphs.y, seed))
    return Task(graphs, Classification(), int(graphs.y.max()) + 1)


def _peptides(dataset: str, root: str | None) -> Task:
    graphs = GraphSet.from_pyg(_open_lrgb(dataset, root, ".pt"))
    return Task(graphs, PEPTIDES[dataset](), graphs.y.shape[1], categories=ATOM_CATEGORIES)


def _contacts(root: str | None) -> Task:
    graphs = GraphSet.from_pyg(_open_lrgb(CONTACTS, root, ".pt"))
    return Task(graphs, ContactPrediction(), None, readout="node", categories=ATOM_CATEGORIES)


def _superpixels(dataset: str, root: str | None) -> Task:
    graphs = GraphSet.from_pyg(_open_lrgb(dataset, root, ".pickle"), node_level=True)
    num_classes = SUPERPIXELS[dataset]
    objective = WeightedClassification.of_labels(graphs.targets(graphs.splits["train"]), num_classes)
    return Task(graphs, objective, num_classes, readout="node")


def _qm9(root: str | None, seed: int, target: int) -> Task:
    """One property, shifted and scaled to mean 0 and deviation 1 over the training molecules."""
    if not 0 <= target < QM9_TARGETS:
        raise ValueError(f"load_task: target must be in [0, {QM9_TARGETS}), got {target}")

    def make(folder: Path) -> Any:
        from torch_geometric.datasets import QM9

        return QM9(str(folder / "qm9"))

    files = ("qm9/processed/data_v3.pt", "qm9/raw/qm9_v3.pt", "qm9/raw/gdb9.sdf")
    graphs = GraphSet.from_pyg({"all": _open_pyg("QM9", root, make, "qm9", files)})
    y = graphs.y[:, target : target + 1]
    splits = stratified_splits(torch.zeros(len(y), dtype=torch.int64), seed)
    train = y[splits["train"]]
    y = (y - train.mean()) / train.std()
    return Task(replace(graphs, y=y, splits=splits), Regression(), 1)


def _open_lrgb(dataset: str, root: str | None, suffix: str) -> dict[str, Any]:
    """The three splits of a data set of the Long Range Graph Benchmark."""

    def make(folder: Path) -> Any:
        from torch_geometric.datasets import LRGBDataset

        return {split: LRGBDataset(str(folder), dataset, split) for split in ("train", "val", "test")}

    files = (f"{dataset}/processed/train.pt", f"{dataset}/raw/train{suffix}")
    return _open_pyg(dataset, root, make, dataset, files)


def _open_pyg(
    name: str, root: str | None, make: Callable[[Path], Any], folder: str, files: tuple[str, ...], also: str = ""
) -> Any:
    """What ``make`` opens in the first folder that holds one of the files, or fetches into a new one.

    Args:
        name: for messages.
        root: as in load_task.
        make: opens or fetches the data set below a folder.
        folder: that ``make`` fills below its own.
        files: each stands for the data set as PyG keeps it, relative to the folder.
        also: other files that would do, for the message.
    """
    bases = [base / where for base in data_roots(root) for where in ("", "tu", "lrgb")]
    for base in bases:
        if any((base / file).is_file() for file in files):
            return make(base)
    try:
        return _fetch(make, Path(root or "data"), folder)
    except OSError as error:
        tried = "\n  ".join(str(base.absolute()) for base in bases)
        raise FileNotFoundError(
            f"load_task: the files of {name} must be in one of the folders below, got none of them, and fetching them "
            f"failed ({type(error).__name__}: {error}).\nFiles: {also}{' or '.join(files)}\nFolders:\n  {tried}"
        ) from error


def _fetch(make: Callable[[Path], Any], root: Path, folder: str) -> Any:
    """Fetch below ``root``, the whole folder or nothing."""
    root.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix=".fetch.") as partial:
            make(Path(partial))
            os.replace(Path(partial) / folder, root / folder)
    except OSError:
        with contextlib.suppress(OSError):  # an empty folder goes, any other stays
            root.rmdir()
        raise
    return make(root)


def _read_tu_text(path: Path) -> GraphSet:
    """The text format of the powerful-gnns repository: number of graphs; per graph its nodes and its label; per node
    tag, number of neighbours, neighbours. Tags become one-hot features."""
    try:
        with path.open() as file:
            rows = [[int(float(token)) for token in line.split()] for line in file]
        return _parse_tu(rows)
    except (ValueError, IndexError) as error:
        raise ValueError(f"load_task: {path} must be a text file of graphs, got {error}") from error


def _parse_tu(rows: list[list[int]]) -> GraphSet:
    tags: list[int] = []
    labels: list[int] = []
    source: list[int] = []
    target: list[int] = []
    node_ptr, edge_ptr, line = [0], [0], 1
    for _ in range(rows[0][0]):
        num_nodes, label = rows[line][:2]
        first = node_ptr[-1]
        for i, (tag, degree, *neighbors) in enumerate(rows[line + 1 : line + 1 + num_nodes]):
            if len(neighbors) < degree or not all(0 <= j < num_nodes for j in neighbors[:degree]):
                raise ValueError(f"the neighbours {neighbors} of node {i} of graph {len(labels)}")
            tags.append(tag)
            source += [first + j for j in neighbors[:degree]]
            target += [first + i] * degree
        labels.append(label)
        node_ptr.append(first + num_nodes)
        edge_ptr.append(len(source))
        line += 1 + num_nodes
    if len(tags) != node_ptr[-1]:
        raise ValueError(f"{len(tags)} nodes instead of {node_ptr[-1]}")
    x = F.one_hot(_from_zero(tags)).float()
    ptr = (torch.tensor(node_ptr), torch.tensor(edge_ptr))
    return GraphSet(x, torch.tensor([source, target]), *ptr, _from_zero(labels), {})


def _from_zero(values: list[int]) -> Tensor:
    return torch.tensor(values).unique(return_inverse=True)[1]
