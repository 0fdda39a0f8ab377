"""Where a worker stands: its stage (a run of layers) and its way (a part of the graph)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

__all__ = ["Grid"]


@dataclass(frozen=True)
class Grid:
    """num_stages x num_ways workers; the rank of a worker is stage * num_ways + way.

    One way is a pipeline, one stage graph parallelism, several of both the hybrid.
    """

    num_stages: int = 1
    num_ways: int = 1
    stage: int = 0
    way: int = 0

    @classmethod
    def of_world(cls, num_ways: int) -> Grid:
        """The place of this process in its process group; alone it is the whole grid.

        Raises:
            ValueError: if the workers do not make whole stages.
        """
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return cls()
        world, rank = dist.get_world_size(), dist.get_rank()
        if world % num_ways != 0:
            raise ValueError(f"initialize: num_ways must divide the number of workers ({world}), got {num_ways}")
        stage, way = divmod(rank, num_ways)
        return cls(world // num_ways, num_ways, stage, way)

    @property
    def num_workers(self) -> int:
        return self.num_stages * self.num_ways

    @property
    def rank(self) -> int:
        return self.rank_of(self.stage, self.way)

    @property
    def ways(self) -> list[int]:
        """Ranks of this stage, the replicas of its weights."""
        return [self.rank_of(self.stage, way) for way in range(self.num_ways)]

    @property
    def pipeline(self) -> list[int]:
        """Ranks of this way, one per stage."""
        return [self.rank_of(stage, self.way) for stage in range(self.num_stages)]

    def rank_of(self, stage: int, way: int) -> int:
        return stage * self.num_ways + way

    def name(self, rank: int) -> str:
        """The worker of this rank, for messages."""
        stage, way = divmod(rank, self.num_ways)
        return f"stage {stage}" if self.num_ways == 1 else f"stage {stage}, way {way}"
