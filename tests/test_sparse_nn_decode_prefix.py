"""Leaves of the cache that several sequences share: read once, and not a bit of the result changes."""

import pytest
import torch

from gossamer.sparse_nn import PagedKVCache, decode_attention

BLOCK = 64  # four blocks to a leaf of 256 positions
# Shared blocks of every sequence with the one before it (0 begins another prompt), and own positions behind them.
TREES = [
    pytest.param([(0, 1300), (20, 30), (20, 500), (20, 1)], id="one prompt"),
    pytest.param([(0, 1300), (20, 30), (0, 700), (8, 9), (8, 300)], id="two prompts"),
    pytest.param([(0, 2000), (30, 200), (16, 600), (22, 100), (5, 300)], id="a tree of prompts"),
    pytest.param([(0, 700), (11, 0), (11, 0), (0, 0)], id="equal sequences and an empty one"),
    pytest.param([(0, 200), (3, 40)], id="less than a leaf"),
]


def make_cache(tree, kv_heads, dtype, seed=0):
    """Keys and values in blocks, the table and the lengths of the sequences."""
    rows, lengths, next_block = [], [], 0
    for shared, own in tree:
        count = -(-own // BLOCK)
        rows.append((rows[-1][:shared] if rows else []) + list(range(next_block, next_block + count)))
        lengths.append(shared * BLOCK + own)
        next_block += count
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(next_block, BLOCK, kv_heads, 64, generator=generator).to(dtype) for _ in range(2))
    width = max(map(len, rows))
    return k, v, torch.tensor([row + [-1] * (width - len(row)) for row in rows]), torch.tensor(lengths), generator


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "num_queries"), [(1, 1, 1), (8, 2, 1), (12, 3, 2), (40, 1, 1)])
@pytest.mark.parametrize("tree", TREES)
def test_shared_blocks_equal_own_blocks_to_the_bit(tree, heads, kv_heads, num_queries, dtype, threads, device):
    k, v, table, lengths, generator = make_cache(tree, kv_heads, dtype)
    shuffle = torch.randperm(len(tree), generator=generator)
    table, lengths = table[shuffle], lengths[shuffle]
    q = torch.randn(len(tree), num_queries, heads, 64, generator=generator).to(dtype)
    q, k, v, table, lengths = (x.to(device) for x in (q, k, v, table, lengths))
    own_k, own_v = (x[table.clamp(min=0)].flatten(1, 2) for x in (k, v))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        heads_options = {"sinks": torch.zeros(heads, device=device), "alibi_slopes": torch.rand(heads, device=device)}
        for options in ({}, {"window": 900}, heads_options):
            shared = decode_attention(q, k, v, seq_lens=lengths, block_table=table, return_lse=True, **options)
            alone = decode_attention(q, own_k, own_v, seq_lens=lengths, return_lse=True, **options)
            assert all(torch.equal(a, b) for a, b in zip(shared, alone))
    finally:
        torch.set_num_threads(before)


def test_expanded_cache_is_one_prefix(device):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(5, 1, 8, 64, generator=generator).to(device)
    k = torch.randn(1, 1100, 2, 64, generator=generator).to(device).expand(5, -1, -1, -1)
    lengths = torch.tensor([1100, 300, 0, 1099, 1100], device=device)
    out = decode_attention(q, k, k, seq_lens=lengths)
    assert torch.equal(out, decode_attention(q, k.contiguous(), k.contiguous(), seq_lens=lengths))


def test_int8_blocks_are_shared_to_the_bit():
    k, v, table, lengths, generator = make_cache(TREES[2].values[0], 2, torch.float32)
    scales = [x.abs().amax(-1) / 127 for x in (k, v)]
    ints = [(x / s[..., None]).round().to(torch.int8) for x, s in zip((k, v), scales)]
    q = torch.randn(len(lengths), 1, 8, 64, generator=generator).bfloat16()

    def run(rows):
        chosen = dict(zip(("k_scale", "v_scale"), scales))
        return decode_attention(q[rows], *ints, seq_lens=lengths[rows], block_table=table[rows], **chosen)

    together = run(slice(None))
    assert all(torch.equal(together[b : b + 1], run(slice(b, b + 1))) for b in range(len(lengths)))


def test_forked_sequences_of_a_paged_cache_share_their_prompt():
    generator = torch.Generator().manual_seed(0)
    cache = PagedKVCache(64, 16, 2, 64)
    cache.add("prompt")
    cache.append(["prompt"], *(torch.randn(1, 600, 2, 64, generator=generator) for _ in range(2)))
    names = ["a", "b", "c"]
    for name in names:
        cache.fork("prompt", name)
    cache.append(names, *(torch.randn(3, 5, 2, 64, generator=generator) for _ in range(2)))
    assert (cache.block_table(names)[:, :37] == cache.block_table(names)[0, :37]).all()
    q = torch.randn(3, 1, 8, 64, generator=generator)
    together = cache.attend(names, q)
    alone = torch.cat([cache.attend([name], q[i : i + 1]) for i, name in enumerate(names)])
    assert torch.equal(together, alone)
