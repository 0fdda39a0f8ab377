"""An ONNX model of a single node, written without the onnx package: for rivals that run in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["ABSENT", "FLOAT", "INT8", "INT32", "single_node"]

FLOAT, INT8, INT32 = 1, 3, 6  # TensorProto.DataType
ABSENT = 0  # an optional input that is not given


def single_node(
    operator: str,
    domain: str,
    inputs: Mapping[str, int],
    outputs: Mapping[str, int],
    attributes: Mapping[str, int | str],
) -> bytes:
    """The bytes of a model: one operator, its inputs and outputs by name and type in order, its attributes."""
    node = _field(4, _text(operator)) + _field(7, _text(domain))
    names = [name if kind != ABSENT else "" for name, kind in inputs.items()]
    inputs = {name: kind for name, kind in inputs.items() if kind != ABSENT}
    node = b"".join(_field(1, _text(n)) for n in names) + b"".join(_field(2, _text(n)) for n in outputs) + node
    for name, value in attributes.items():
        stored = (
            _field(4, _text(value)) + _number(20, 3) if isinstance(value, str) else _number(3, value) + _number(20, 2)
        )
        node += _field(5, _field(1, _text(name)) + stored)  # AttributeProto, of type STRING or INT
    graph = _field(1, node) + _field(2, _text("graph")) + _values(11, inputs) + _values(12, outputs)
    opsets = b"".join(
        _field(8, _field(1, _text(name)) + _number(2, number)) for name, number in (("", 17), (domain, 1))
    )
    return _number(1, 8) + _field(7, graph) + opsets


def _values(number: int, tensors: Mapping[str, int]) -> bytes:
    """ValueInfoProto of tensors of unknown shape."""
    return b"".join(
        _field(number, _field(1, _text(name)) + _field(2, _field(1, _number(1, kind))))
        for name, kind in tensors.items()
    )


def _text(value: str) -> bytes:
    return value.encode()


def _field(number: int, payload: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    digits: Sequence[int] = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([digit | 128 for digit in digits[:-1]] + [digits[-1]])
