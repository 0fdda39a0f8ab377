"""decode_attention and zentorch's attention in turns, in a process that zentorch may change.

python benchmarks/zentorch_attention.py BATCH HEADS KV_HEADS DIM LENGTH   prints the figure as JSON
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import torch

from gossamer.sparse_nn import decode_attention

from timing import compare


def main() -> None:
    batch, heads, kv_heads, dim, length = map(int, sys.argv[1:])
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(batch, 1, heads, dim, generator=generator).bfloat16()
    k, v = (torch.randn(batch, length, kv_heads, dim, generator=generator).bfloat16() for _ in range(2))
    import zentorch  # noqa: F401  registers its operators

    by_head = [x.transpose(1, 2).contiguous() for x in (q, k, v)]
    out = torch.empty_like(by_head[0])
    theirs = lambda: torch.ops.zentorch.zentorch_sdpa_attn(*by_head, out)  # noqa: E731
    theirs()
    torch.testing.assert_close(out.transpose(1, 2), decode_attention(q, k, v), rtol=2e-2, atol=2e-2)
    calls = {"ours": lambda: decode_attention(q, k, v), "zentorch": theirs}
    print(json.dumps(asdict(compare(calls, repeats=7, max_seconds=12).figure("zentorch", "ours"))))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
