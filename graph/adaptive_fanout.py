"""The fan-out policy of LiGNN: start with few neighbours and take more when training stops getting better."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdaptiveFanout"]


@dataclass
class AdaptiveFanout:
    """fanout = min(fanout + stride, final) whenever metric <= last metric + tolerance; tolerance *= decay each time.

    Use with ``NeighborSampler.num_neighbors``, or with the fan-outs of ``neighbor_sample``, after every evaluation; the
    state is in the attributes, so the object can be pickled with a checkpoint.

    Args:
        start: fan-out until the first plateau, at least 1.
        stride: added at every plateau, at least 1.
        final: largest fan-out, at least ``start``.
        tolerance: gain of the metric that still counts as a plateau, at least 0.
        decay: factor on the tolerance at every update, in (0, 1].

    Source: LiGNN (Borisyuk et al. 2024), adaptive neighbour sampling.
    """

    start: int
    stride: int
    final: int
    tolerance: float
    decay: float
    fanout: int = 0
    last_metric: float | None = None

    def __post_init__(self) -> None:
        for name in ("start", "stride", "final"):
            _check(name, (value := getattr(self, name)), isinstance(value, int), "an int")
        _check("start", self.start, self.start >= 1, "at least 1")
        _check("stride", self.stride, self.stride >= 1, "at least 1")
        _check("final", self.final, self.final >= self.start, f"at least start = {self.start}")
        _check("tolerance", self.tolerance, self.tolerance >= 0, "at least 0")
        _check("decay", self.decay, 0 < self.decay <= 1, "in (0, 1]")
        self.fanout = self.fanout or self.start
        _check("fanout", self.fanout, 1 <= self.fanout <= self.final, f"in [1, {self.final}]")

    def update(self, metric: float) -> int:
        """Take note of an evaluation, where larger is better, and return the fan-out from now on."""
        metric = float(metric)
        if metric != metric:
            raise ValueError(f"AdaptiveFanout: metric must be a number, got {metric}")
        if self.last_metric is not None and metric <= self.last_metric + self.tolerance:
            self.fanout = min(self.fanout + self.stride, self.final)
        self.last_metric = metric
        self.tolerance *= self.decay
        return self.fanout


def _check(name: str, value: float, holds: bool, requirement: str) -> None:
    if not holds:
        raise ValueError(f"AdaptiveFanout: {name} must be {requirement}, got {value}")
