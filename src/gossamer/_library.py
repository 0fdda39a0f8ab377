"""Load the native libraries: the CPU one must load, the CUDA one loads where torch has CUDA."""

import glob
import os
import warnings

import torch

_FOLDER = os.path.dirname(__file__)


def _find(stem: str) -> str | None:
    found = sorted(glob.glob(os.path.join(_FOLDER, f"{stem}.*.so")) + glob.glob(os.path.join(_FOLDER, f"{stem}.so")))
    return found[0] if found else None


def _load_cpu() -> None:
    path = _find("_C")
    if path is None:
        raise ImportError("gossamer: the native library is not built; run pip install --no-build-isolation .")
    torch.ops.load_library(path)


def _load_cuda() -> bool:
    path = _find("_C_cuda")
    if path is None or torch.version.cuda is None:
        return False
    try:
        torch.ops.load_library(path)
    except OSError as error:
        warnings.warn(f"gossamer: the CUDA kernels did not load, only CPU kernels are there: {error}", stacklevel=3)
        return False
    return True


def cuda_built() -> bool:
    """True where the installed package carries compiled CUDA kernels."""
    return _find("_C_cuda") is not None


def cuda_loaded() -> bool:
    """True where the CUDA kernels are registered with torch in this process."""
    return _CUDA_LOADED


def instruction_set() -> str:
    """Name of the instruction set that CPU kernels use now: scalar, avx2, avx512 or avx512_bf16."""
    return torch.ops.gossamer.instruction_set()


_load_cpu()
_CUDA_LOADED = _load_cuda()
