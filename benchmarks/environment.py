"""What a figure was measured on: processor, versions and revision, found at run time."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

import gossamer

__all__ = ["environment", "environment_line"]

ROOT = Path(__file__).resolve().parent.parent
ISA_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")


@lru_cache
def environment() -> dict[str, str]:
    """Machine and versions, in the order in which a report shows them."""
    entries = {
        "cpu": _cpu_model(),
        "flags": " ".join(_cpu_flags()) or "unknown",
        "isa": gossamer.instruction_set(),
        "cores": str(len(os.sched_getaffinity(0))),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gossamer": gossamer.__version__,
        "revision": _revision(),
    }
    if torch.cuda.is_available():
        entries["cuda"] = str(torch.version.cuda)
    return entries


def environment_line() -> str:
    """The environment in one line."""
    return ", ".join(f"{key} {value}" for key, value in environment().items())


def _cpuinfo(field: str) -> str:
    path = Path("/proc/cpuinfo")
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _cpu_model() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpu_flags() -> list[str]:
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return [flag for flag in ISA_FLAGS if flag in flags]


def _revision() -> str:
    if not (ROOT / ".git").exists():  # installed: a repository further up would be another project's
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
