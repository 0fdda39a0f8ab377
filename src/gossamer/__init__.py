"""Gossamer: fast kernels and pipelines for graph and sparse models on PyTorch.

Importing loads the native operators (``torch.ops.gossamer``) and nothing else; the three parts are
``gossamer.graph``, ``gossamer.sparse_nn`` and ``gossamer.distributed``.
"""

from importlib.metadata import version as _version

from gossamer._library import cuda_built, cuda_loaded, instruction_set

__version__ = _version("gossamer")
__all__ = ["__version__", "cuda_built", "cuda_loaded", "instruction_set"]
