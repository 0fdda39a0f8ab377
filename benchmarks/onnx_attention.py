"""onnxruntime's GroupQueryAttention over a cache of float32 or int8, as a rival of decode_attention."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_model
import onnxruntime
import torch
from torch import Tensor


class GroupQueryAttention:
    """One decoding step of q [B, 1, Hq, D] over k and v [B, S, Hkv, D], on one thread.

    Args:
        q: float32.
        k: float32, or int8 with ``scales``; copied into the layout of onnxruntime.
        v: like k.
        scales: [1] of all keys and [1] of all values.
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, scales: Sequence[Tensor] | None = None) -> None:
        batch, length, kv_heads, _ = k.shape
        factors = scales or (1.0, 1.0)
        rows = {"query": q, "key": k[:, -1:] * factors[0], "value": v[:, -1:] * factors[1]}
        self._feeds = {name: x.flatten(2).contiguous() for name, x in rows.items()}
        self._feeds |= {f"past_{name}": x.transpose(1, 2).contiguous() for name, x in (("key", k), ("value", v))}
        lengths = {"seqlens_k": torch.full((batch,), length - 1), "total": torch.tensor([length])}
        self._feeds |= {name: x.int() for name, x in lengths.items()}
        kinds = {name: _kind(x) for name, x in self._feeds.items()}
        attributes: dict[str, int | str] = {"num_heads": q.shape[2], "kv_num_heads": kv_heads}
        if scales:
            optional = ("cos_cache", "sin_cache", "position_ids", "attention_bias", "head_sink")
            self._feeds |= {"k_scale": scales[0], "v_scale": scales[1]}
            kinds |= dict.fromkeys(optional, onnx_model.ABSENT)
            kinds |= dict.fromkeys(("k_scale", "v_scale"), onnx_model.FLOAT)
            attributes |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
        self._out = torch.empty_like(q)
        past = {f"present_{name}": self._feeds[f"past_{name}"] for name in ("key", "value")}
        self._bind(kinds, {"out": self._out.flatten(2), **past}, attributes)

    def __call__(self) -> Tensor:
        self._session.run_with_iobinding(self._binding)
        return self._out

    def _bind(self, kinds: dict[str, int], results: dict[str, Tensor], attributes: dict[str, int | str]) -> None:
        outputs = {name: _kind(x) for name, x in results.items()}
        model = onnx_model.single_node("GroupQueryAttention", "com.microsoft", kinds, outputs, attributes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        for bind, tensors in ((self._binding.bind_input, self._feeds), (self._binding.bind_output, results)):
            for name, x in tensors.items():
                bind(name, "cpu", 0, x.numpy().dtype.type, tuple(x.shape), x.data_ptr())


def _kind(x: Tensor) -> int:
    kinds = {torch.float32: onnx_model.FLOAT, torch.int8: onnx_model.INT8, torch.int32: onnx_model.INT32}
    return kinds[x.dtype]
