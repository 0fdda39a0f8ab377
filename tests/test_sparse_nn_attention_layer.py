"""Caches and the attention layer: decoding step by step equals the whole sequence at once."""

import pytest
import torch

from gossamer.sparse_nn import (
    CacheFullError,
    KVCache,
    MultiQueryAttention,
    PagedKVCache,
    decode_attention,
    matched_d_ff,
    mean_pool_heads,
)


def rows(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("positions", ["rotary", "learned", "none"])
@pytest.mark.parametrize("window", [None, 3])
def test_decoding_equals_the_whole_sequence(num_kv_heads, positions, window):
    torch.manual_seed(0)
    layer = MultiQueryAttention(32, 4, num_kv_heads, positions=positions, window=window)
    x = rows(2, 11, 32)
    cache = layer.new_cache(2, 16)
    pieces = [layer(piece, cache) for piece in x.split([5, 1, 1, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), layer(x), rtol=1e-4, atol=1e-5)


def test_layer_trains():
    layer = MultiQueryAttention(32, 4)
    layer(rows(2, 5, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())


def test_truncated_cache_forgets_drafts():
    layer = MultiQueryAttention(16, 2)
    x = rows(2, 6, 16)
    cache = layer.new_cache(2, 8)
    layer(x[:, :4], cache)
    layer(rows(2, 3, 16, seed=1), cache)
    cache.truncate([4, 4])
    torch.testing.assert_close(layer(x[:, 4:], cache), layer(x)[:, 4:], rtol=1e-4, atol=1e-5)


def test_pooling_equal_heads_changes_nothing():
    torch.manual_seed(0)
    layer = MultiQueryAttention(32, 4, 4)
    for projection in (layer.key, layer.value):
        projection.weight.data = projection.weight.data[:8].repeat(4, 1)
    x = rows(1, 7, 32)
    for num_kv_heads in (1, 2):
        torch.testing.assert_close(layer.pooled(num_kv_heads)(x), layer(x), rtol=1e-5, atol=1e-6)


def test_pooled_heads_are_means():
    weight = torch.arange(8.0)[:, None]  # 4 heads of 2 rows
    assert mean_pool_heads(weight, 4, 2).flatten().tolist() == [1, 2, 5, 6]


@pytest.mark.parametrize(
    ("d_ff", "new", "num_attention", "num_feed_forward", "expected"),
    [
        pytest.param(4096, (8, 1, 128), 18, 12, 5440, id="translation, multi-query"),
        pytest.param(4096, (1, 1, 128), 18, 12, 6784, id="translation, one head"),
        pytest.param(4096, (8, 8, 16), 18, 12, 6784, id="translation, small heads"),
        pytest.param(8192, (8, 1, 128), 6, 6, 9088, id="language model, multi-query"),
        pytest.param(8192, (1, 1, 128), 6, 6, 9984, id="language model, one head"),
    ],
)
def test_matched_widths_are_those_of_the_paper(d_ff, new, num_attention, num_feed_forward, expected):
    width = matched_d_ff(d_ff, (8, 8, 128), new, num_attention=num_attention, num_feed_forward=num_feed_forward)
    assert width == expected


def test_pages_equal_one_block_of_memory():
    pages, cache = PagedKVCache(10, 4, 2, 16), KVCache(2, 32, 2, 16)
    for name in "ab":
        pages.add(name)
    for step, count in enumerate([7, 1, 3]):
        k, v = rows(2, count, 2, 16, seed=step), rows(2, count, 2, 16, seed=step + 9)
        pages.append("ab", k, v)
        cache.append(k, v)
    q = rows(2, 1, 8, 16)
    assert torch.equal(pages.attend("ab", q), cache.attend(q))


def test_forks_share_until_they_write():
    cache = PagedKVCache(5, 4, 1, 16)
    cache.add("parent")
    k, v = rows(1, 6, 1, 16), rows(1, 6, 1, 16, seed=1)
    cache.append(["parent"], k, v)
    cache.fork("parent", "child")
    assert cache.num_free_blocks == 3
    more = rows(1, 1, 1, 16, seed=2)
    cache.append(["child"], more, more)
    assert cache.num_free_blocks == 2  # the second block was copied, the first is shared
    assert cache.block_table(["parent", "child"])[:, 0].unique().numel() == 1
    q = rows(1, 1, 4, 16, seed=3)
    assert torch.equal(cache.attend(["parent"], q), decode_attention(q, k, v))
    longer = torch.cat([k, more], 1), torch.cat([v, more], 1)
    assert torch.equal(cache.attend(["child"], q), decode_attention(q, *longer))
    cache.free("parent")
    assert torch.equal(cache.attend(["child"], q), decode_attention(q, *longer))
    cache.free("child")
    assert cache.num_free_blocks == 5


def test_full_caches_say_so_and_stay_as_they_were():
    pages, cache = PagedKVCache(2, 4, 1, 16), KVCache(1, 4, 1, 16)
    pages.add(0)
    x = rows(1, 3, 1, 16)
    pages.append([0], x, x)
    cache.append(x, x)
    big = rows(1, 9, 1, 16)
    with pytest.raises(CacheFullError, match=r"must be few enough for 1 free blocks .* got a need of 2"):
        pages.append([0], big, big)
    with pytest.raises(CacheFullError, match="k must be of at most 1 more positions"):
        cache.append(big, big)
    assert pages.length(0) == 3
    assert cache.lengths == [3]


WRONG = [
    (lambda: MultiQueryAttention(32, 4, 3), "num_kv_heads must be a divisor of 4"),
    (lambda: MultiQueryAttention(32, 4, positions="sine"), "positions must be"),
    (lambda: mean_pool_heads(torch.ones(8, 2), 4, 3), "a divisor of 4"),
    (lambda: PagedKVCache(2, 4, 1, 16).free("x"), "sequence must be in the cache, got 'x'"),
    (lambda: KVCache(2, 4, 1, 16).append(rows(1, 1, 1, 16), rows(1, 1, 1, 16)), "k must be of shape"),
    (lambda: KVCache(1, 4, 1, 16).truncate([1]), r"lengths must be in \[0, 0\]"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
