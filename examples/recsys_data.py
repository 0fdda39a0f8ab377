"""Interactions of members with items over time: MovieLens files, or generated ones; and the graph they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gossamer.graph import CSR, densify
from gossamer.graph.edge_files import Columns, read_edges, record_type

__all__ = ["Interactions", "Task", "generate", "make_task", "read_movielens"]

_NUM_GENRES = 19


@dataclass(frozen=True)
class Interactions:
    """Events in the order of time.

    Args:
        name: of the data.
        member, item: [E], int64, counted from 0 each.
        time: [E], int64, seconds.
        content: [num_items, D], float32, what is known of an item before anyone has seen it; D may be 0.
    """

    name: str
    member: Tensor
    item: Tensor
    time: Tensor
    content: Tensor

    @property
    def num_members(self) -> int:
        return int(self.member.max()) + 1


def read_movielens(ratings: str, items: str | None = None) -> Interactions:
    """``u.data`` with ``u.item``, or ``ratings.csv`` with ``movies.csv``; every rating is an event, of any value.

    Raises:
        OSError: if a file cannot be read.
        ValueError: naming file and line of what is no rating or no item.
    """
    path = Path(ratings)
    columns = _read_csv(path) if path.suffix == ".csv" else _read_fields(path)
    if len(columns[0]) < 1000:
        raise ValueError(f"read_movielens: ratings must be at least 1000 lines, got {len(columns[0])} in {path}")
    by_time = np.argsort(columns[2], kind="stable")
    _, member = np.unique(columns[0][by_time], return_inverse=True)
    names, item = np.unique(columns[1][by_time], return_inverse=True)
    content = torch.zeros(len(names), 0)
    if items is not None:
        genres = _read_genres(Path(items))
        content = torch.stack([genres.get(int(name), torch.zeros(_NUM_GENRES)) for name in names])
    return Interactions(
        path.parent.name or path.stem,
        torch.from_numpy(member.astype(np.int64)),
        torch.from_numpy(item.astype(np.int64)),
        torch.from_numpy(columns[2][by_time]),
        content,
    )


def _read_csv(path: Path) -> list[np.ndarray]:
    """Member, item and time of a file with commas and a header."""
    chunks = read_edges(path, Columns(0, 1, None, 3), chunk_edges=1 << 20)
    records = np.concatenate([np.empty(0, record_type(Columns(time=3))), *(records for records, _ in chunks)])
    return [records[name] for name in ("source", "target", "time")]


def _read_fields(path: Path) -> list[np.ndarray]:
    """The same of user, item, rating and time between tabs or spaces: copies of ``u.data`` mix the two."""
    try:
        table = np.loadtxt(path, dtype=np.int64, usecols=(0, 1, 3), ndmin=2)
    except ValueError as error:
        raise ValueError(f"read_movielens: ratings must be user, item, rating, time, got {error} in {path}") from error
    return list(table.T.copy())


def _read_genres(path: Path) -> dict[int, Tensor]:
    """Genres by item, as zeros and ones."""
    text = path.read_bytes().decode("latin-1").splitlines()
    if path.suffix != ".csv":
        lines = [(line.split("|")[0], [float(f) for f in line.split("|")[-_NUM_GENRES:]]) for line in text]
        found = {int(name): torch.tensor(values) for name, values in lines if len(values) == _NUM_GENRES}
        if len(found) < len(lines):
            raise ValueError(f"read_movielens: items must have {_NUM_GENRES} genres in every line, got fewer in {path}")
        return found
    by_item = {}
    for number, line in enumerate(text[1:], 2):
        name, *_, genres = line.split(",") if "," in line else ("", "")
        if not name.isdecimal():
            raise ValueError(f"read_movielens: items must be id, title, genres, got {line[:40]!r} in {path}:{number}")
        by_item[int(name)] = genres.split("|")
    known = sorted({genre for genres in by_item.values() for genre in genres})[:_NUM_GENRES]
    return {
        name: torch.tensor([float(genre in genres) for genre in known] + [0.0] * (_NUM_GENRES - len(known)))
        for name, genres in by_item.items()
    }


def generate(
    num_members: int = 800, num_items: int = 1000, num_events: int = 40_000, *, num_topics: int = 20, seed: int = 0
) -> Interactions:
    """Members with interests that change: an event is most often about one of a member's two present topics.

    Half way through its life a member replaces one topic. Activity and popularity are skewed; the content of an item
    is its topic under noise.
    """
    g = torch.Generator().manual_seed(seed)
    topic = torch.randint(num_topics, (num_items,), generator=g)
    popularity = torch.rand(num_items, generator=g).pow(-0.5)
    activity = torch.rand(num_members, generator=g).pow(-0.4)
    member = torch.multinomial(activity, num_events, replacement=True, generator=g)
    begin = torch.rand(num_members, generator=g) * 0.6
    age = torch.rand(num_events, generator=g)
    when = begin[member] + age * (1 - begin[member])
    interests = torch.randint(num_topics, (num_members, 3), generator=g)
    choice = torch.randint(2, (num_events,), generator=g) + (age > 0.5)
    wanted = interests[member, choice]
    wanted[torch.rand(num_events, generator=g) < 0.15] = num_topics  # an event about anything
    shares = torch.stack([popularity * (topic == t) for t in range(num_topics)] + [popularity])
    item = torch.empty(num_events, dtype=torch.int64)
    for t, share in enumerate(shares):
        places = (wanted == t).nonzero().flatten()
        if len(places):
            item[places] = torch.multinomial(share, len(places), replacement=True, generator=g)
    order = when.argsort(stable=True)
    basis = torch.randn(num_topics, 16, generator=g)
    content = basis[topic] + 0.7 * torch.randn(num_items, 16, generator=g)
    time = (when[order] * 365 * 86_400).long()
    return Interactions("generated", member[order], item[order], time, content)


@dataclass(frozen=True)
class Task:
    """What is trained on: members are nodes [0, num_members), items the nodes after them.

    Args:
        name: of the data.
        graph: both directions of every event, with its time, and what densification added at the earliest time.
        events: item -> member edges alone, for the sequences of events.
        member, item, time: [E], the events in the order of time, nodes by their ids in the graph.
        content: [num_nodes, D], zero for members.
        num_members: number of members.
        bounds: events [0, bounds[0]) are history only, up to bounds[1] training, bounds[2] validation, then test.
    """

    name: str
    graph: CSR
    events: CSR
    member: Tensor
    item: Tensor
    time: Tensor
    content: Tensor
    num_members: int
    bounds: tuple[int, int, int]

    def examples(self, split: str) -> Tensor:
        """Numbers of the events of train, val or test."""
        begin, end = {"train": (0, 1), "val": (1, 2), "test": (2, 3)}[split]
        limits = (*self.bounds, len(self.member))
        return torch.arange(limits[begin], limits[end])


def make_task(data: Interactions, *, num_similar: int = 0) -> Task:
    """Split by time (10 % history, 70 % training, 10 % validation, 10 % test) and build the graph.

    Args:
        data: the events.
        num_similar: further in-neighbours of every item that few members saw before the validation: items that many
            saw, by content (densification); 0 for none.
    """
    num_events, num_members = len(data.member), data.num_members
    num_nodes = num_members + len(data.content)
    member, item = data.member, data.item + num_members
    bounds = (num_events // 10, num_events * 8 // 10, num_events * 9 // 10)
    content = torch.cat([torch.zeros(num_members, data.content.shape[1]), data.content])
    content = torch.nn.functional.normalize(content, dim=1) if content.shape[1] else content
    edges = torch.cat([torch.stack([item, member]), torch.stack([member, item])], 1)
    time = data.time.repeat(2)
    if num_similar:
        new = _similar_items(edges[:, num_events : num_events + bounds[1]], content, num_members, num_similar)
        edges = torch.cat([edges, new], 1)
        time = torch.cat([time, data.time[:1].expand(new.shape[1])])
    graph = CSR.from_edge_index(edges, num_nodes, time=time)
    events = CSR.from_edge_index(edges[:, :num_events], num_nodes, time=data.time)
    return Task(data.name, graph, events, member, item, data.time, content, num_members, bounds)


def _similar_items(seen: Tensor, content: Tensor, num_members: int, num_similar: int) -> Tensor:
    """Edges from well-known items to those that few members saw; nothing after the training events is looked at."""
    if not content.shape[1]:
        raise ValueError("make_task: num_similar must be 0 for data without content, got items without it")
    graph = CSR.from_edge_index(seen, len(content))
    dense = densify(graph, content, num_neighbors=num_similar, nodes=torch.arange(num_members, len(content)))
    return dense.to_edge_index()[:, dense.edge_ids >= graph.num_edges] if dense is not graph else seen[:, :0]
