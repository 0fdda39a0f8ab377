"""convert_memory.py EDGES.npz OUTPUT CAP [--compressed]: MiB that convert takes at its peak beyond the library."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy

from gossamer.graph.convert import convert


def resident(name: str) -> int:
    """KiB: VmRSS now, or VmHWM at the peak."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None, "needs Linux"
    return int(found[1])


edges, output, cap, compressed = sys.argv[1], sys.argv[2], int(sys.argv[3]), "--compressed" in sys.argv[4:]
numpy.savez(output, edge_index=numpy.zeros((2, 9), int))
convert([f"{output}.npz"], output, compressed=compressed)  # what is loaded at the first call is not counted
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = resident("VmRSS")
convert([edges], output, memory=cap, compressed=compressed)
print((resident("VmHWM") - before) / 1024)
