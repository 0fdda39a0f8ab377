"""Small valid calls of the public functions that run operators: what fuzzing starts from.

``SAMPLES`` maps a function's name to (make, call): ``make(generator)`` gives keyword arguments of tensors and plain
values, another set for every state of the generator, and ``call(**arguments)`` builds what the function takes from
them and calls it. Structures (graphs, plans) are built in the call, so that their tensors can be damaged as well.
"""

import samples_graph  # noqa: F401 (registers)
import samples_sparse_nn  # noqa: F401 (registers)
from sample_tools import SAMPLES

__all__ = ["SAMPLES"]
