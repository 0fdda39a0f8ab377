"""What the operators compute, written as plainly as possible: float64, loops, no kernels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN_RATIO = 0x9E3779B97F4A7C15


def mix_bits(x: int) -> int:
    """The mixing of SplitMix64 (csrc/common/random.h)."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def random_draw(seed: int, stream: int, item: int, number: int) -> int:
    """Draw ``number`` of an item: 64 bits."""
    state = mix_bits((seed + _GOLDEN_RATIO * (stream + 1)) & _MASK)
    state = mix_bits((state + _GOLDEN_RATIO * (item + 1)) & _MASK)
    return mix_bits((state + _GOLDEN_RATIO * (number + 1)) & _MASK)


def node_dropout(x: Tensor, p: float, seed: int, step: int, node_ids: Tensor) -> Tensor:
    threshold = round(p * 65536)
    out = torch.zeros_like(x, dtype=torch.float64)
    for i, node in enumerate(node_ids.tolist()):
        for f in range(x.shape[1]):
            bits = random_draw(seed, step, node, f // 4) >> (16 * (f % 4)) & 0xFFFF
            if bits >= threshold:
                out[i, f] = x[i, f].double() * 65536 / (65536 - threshold)
    return out


def quantize_rows(x: Tensor, bits: int, seed: int, step: int) -> Tensor:
    """The rounded values; x / scale is taken in the precision of x."""
    levels = 127 if bits == 8 else 7
    out = torch.zeros_like(x)
    for i in range(x.shape[0]):
        largest = x[i].abs().max()
        for f in range(x.shape[1]):
            drawn = random_draw(seed, step, i, f // 4) >> (16 * (f % 4)) & 0xFFFF
            code = torch.floor(x[i, f] * (levels / largest) + (drawn + 0.5) / 65536)
            out[i, f] = (largest / levels).float() * code.clamp(-levels, levels)
    return out


def floyd_sample(size: int, count: int, seed: int, stream: int, item: int) -> list[int]:
    """``count`` different offsets of [0, size), in the order drawn."""
    chosen: list[int] = []
    for i in range(count):
        newest = size - count + i
        offset = (random_draw(seed, stream, item, i) * (newest + 1)) >> 64
        chosen.append(newest if offset in chosen else offset)
    return chosen


def neighbor_sample(graph, seeds: list[int], fanouts: list[int], seed: int, replace: bool = False):
    """Nodes, then (row, col, edge position) of a uniform sample shared by all seeds."""
    node, local = list(seeds), {}
    for i, n in enumerate(seeds):
        local.setdefault(n, i)
    edges, begin = [], 0
    for hop, fanout in enumerate(fanouts):
        begin, targets = len(node), range(begin, len(node))
        for col in targets:
            first, last = graph.rowptr[node[col]].item(), graph.rowptr[node[col] + 1].item()
            size = last - first
            if fanout == -1 or (size <= fanout and not replace):
                offsets = list(range(size))
            elif replace:
                draws = [random_draw(seed, hop, node[col], i) for i in range(fanout if size else 0)]
                offsets = [(draw * size) >> 64 for draw in draws]
            else:
                offsets = floyd_sample(size, fanout, seed, hop, node[col])
            for position in [first + offset for offset in offsets]:
                source = graph.col[position].item()
                if source not in local:
                    local[source] = len(node)
                    node.append(source)
                edges.append((local[source], col, position))
    return node, edges


def subset_probabilities(weights: list[float], count: int) -> dict[tuple[int, ...], float]:
    """Probability of every subset when ``count`` items are drawn one by one in proportion to the weights left."""
    orders = {(): 1.0}
    for _ in range(min(count, sum(w > 0 for w in weights))):
        longer: dict[tuple[int, ...], float] = {}
        for chosen, p in orders.items():
            left = sum(w for i, w in enumerate(weights) if i not in chosen)
            for i, w in enumerate(weights):
                if w > 0 and i not in chosen:
                    subset = tuple(sorted((*chosen, i)))
                    longer[subset] = longer.get(subset, 0.0) + p * w / left
        orders = longer
    return orders


def k_hop(rowptr: Tensor, col: Tensor, max_hops: int) -> list[Tensor]:
    """Boolean [N, N] per hop: out[k - 1][i, j] where the shortest path from j to i has k edges."""
    num_nodes = len(rowptr) - 1
    adjacency = torch.zeros(num_nodes, num_nodes)
    adjacency[torch.arange(num_nodes).repeat_interleave(rowptr.diff()), col.long()] = 1
    adjacency = adjacency.to_sparse()
    shells, seen, last = [], torch.eye(num_nodes, dtype=torch.bool), torch.eye(num_nodes)
    for _ in range(max_hops):
        shells.append((adjacency @ last > 0) & ~seen)
        seen, last = seen | shells[-1], shells[-1].float()
    return shells


def aggregate(rowptr: Tensor, col: Tensor, weight: Tensor | None, x: Tensor, reduce: str = "sum") -> Tensor:
    messages = x.double()[col.long()]  # [num_edges, F]
    if weight is not None:
        messages = messages * weight.double()[:, None]
    out = []
    for begin, end in zip(rowptr.tolist()[:-1], rowptr.tolist()[1:]):
        row = messages[begin:end]
        if begin == end:
            out.append(x.new_zeros(x.shape[1], dtype=torch.float64))
        elif reduce in ("sum", "mean"):
            out.append(row.sum(0) if reduce == "sum" else row.mean(0))
        else:
            out.append((row.max(0) if reduce == "max" else row.min(0)).values)
    return torch.stack(out) if out else x.double()


def gcn_aggregate(rowptr: Tensor, col: Tensor, weight: Tensor | None, x: Tensor) -> Tensor:
    edges = torch.ones_like(col, dtype=torch.float64) if weight is None else weight.double()
    num_nodes = x.shape[0]
    rows = torch.arange(num_nodes, device=col.device).repeat_interleave(rowptr.diff())
    matrix = torch.eye(num_nodes, dtype=torch.float64, device=col.device)
    matrix = matrix.index_put((rows, col.long()), edges, accumulate=True)  # A + I
    scale = matrix.sum(1).rsqrt()
    return scale[:, None] * (matrix @ (scale[:, None] * x.double()))


def decode_attention(q, k, v, *, seq_lens=None, scale=None, window=None, sinks=None, softcap=None, alibi_slopes=None,
                     tree_mask=None):  # fmt: skip
    """Output and logsumexp of every query against a contiguous cache, one softmax per query and head."""
    q, k, v = q.double(), k.double(), v.double()
    out, lse = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_full(q.shape[:3], -torch.inf)
    for b, i, h in torch.cartesian_prod(*(torch.arange(n) for n in q.shape[:3])).tolist():
        length = k.shape[1] if seq_lens is None else int(seq_lens[b])
        first_draft, kv_head = length - q.shape[1], h * k.shape[2] // q.shape[2]
        j = torch.arange(length)
        distance = first_draft + i - j
        seen = distance >= 0
        if tree_mask is not None:
            row = tree_mask[b % len(tree_mask), i]
            seen = (j < first_draft) | row[(j - first_draft).clamp(min=0)]
        if window is not None:
            seen = seen & (distance < window)
        score = k[b, :length, kv_head] @ q[b, i, h] * (q.shape[3] ** -0.5 if scale is None else scale)
        if softcap is not None:
            score = softcap * torch.tanh(score / softcap)
        if alibi_slopes is not None:
            score = score - alibi_slopes[h].double() * distance
        score = torch.where(seen, score, -torch.inf)
        if sinks is not None:
            score = torch.cat([score, sinks[h : h + 1].double()])
        if score.numel() and score.max() > -torch.inf:
            out[b, i, h] = torch.softmax(score, 0)[:length] @ v[b, :length, kv_head]
            lse[b, i, h] = score.logsumexp(0)
    return out, lse


def hash_gate(x: Tensor, weight: Tensor, table: Tensor, token_ids: Tensor, scale: float = 1.0):
    """Expert ids, and gates from the products with all experts."""
    ids = table[token_ids.long()].long()
    scores = torch.nn.functional.softplus(x.double() @ weight.double().T, threshold=700).sqrt().gather(1, ids)
    return ids.int(), scale * scores / scores.sum(1, keepdim=True)


def top_k_gate(logits: Tensor, k: int, score: str = "softmax", bias: Tensor | None = None, normalize: bool = False,
               scale: float = 1.0, num_groups: int = 1, top_groups: int = 1):  # fmt: skip
    """Expert ids, gates and score sums; the order of a sort that is stable, so that the lower expert comes first."""
    softplus = lambda x: torch.nn.functional.softplus(x, threshold=700).sqrt()  # noqa: E731
    function = {"softmax": lambda x: x.softmax(1), "sigmoid": torch.sigmoid, "sqrt_softplus": softplus}[score]
    scores = function(logits.double())
    choice = scores.detach() if bias is not None or num_groups > 1 else logits.detach()
    choice = choice + (0 if bias is None else bias)
    groups = choice.unflatten(1, (num_groups, -1))
    best = groups.topk(min(2, groups.shape[2]), dim=2).values.sum(2).sort(dim=1, descending=True, stable=True).indices
    dropped = torch.ones(groups.shape[:2], dtype=torch.bool).scatter(1, best[:, :top_groups], False)
    choice = groups.masked_fill(dropped[..., None], float("-inf")).flatten(1)
    ids = choice.sort(dim=1, descending=True, stable=True).indices[:, :k]
    gates = scores.gather(1, ids)
    gates = scale * (gates / (gates.sum(1, keepdim=True) + 1e-20) if normalize else gates)
    return ids.int(), gates, (scores / scores.sum(1, keepdim=True)).sum(0)


def locations(expert_ids: Tensor, capacity: int, first_choices_first: bool = False) -> Tensor:
    """Place of every route within its expert, -1 beyond the capacity, route by route."""
    taken: dict[int, int] = {}
    out = torch.full_like(expert_ids, -1)
    num_tokens, k = expert_ids.shape
    by_token = [(t, j) for t in range(num_tokens) for j in range(k)]
    for t, j in sorted(by_token, key=lambda route: route[1]) if first_choices_first else by_token:
        place = taken.setdefault(int(expert_ids[t, j]), 0)
        if place < capacity:
            out[t, j] = place
            taken[int(expert_ids[t, j])] += 1
    return out


def ppr(graph, seeds: Tensor, alpha: float) -> Tensor:
    """[num_seeds, num_nodes]: personalised PageRank by power iteration; without a next node walks end."""
    step = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.float64)
    step.index_put_((graph._rows, graph.col.long()), torch.ones(graph.num_edges, dtype=torch.float64), accumulate=True)
    degree = step.sum(1)
    stop = torch.where(degree > 0, alpha, 1.0)
    step /= degree.clamp(min=1)[:, None]
    walks = torch.eye(graph.num_nodes, dtype=torch.float64)[seeds]
    score = torch.zeros_like(walks)
    while float(walks.sum()) > 1e-13:
        score += walks * stop
        walks = (walks * (1 - stop)) @ step
    return score


def cut_off_ppr(graph, seeds: Tensor, alpha: float, num_steps: int) -> Tensor:
    """[num_seeds, num_nodes]: the terms of ``ppr`` up to step num_steps."""
    score = torch.zeros(len(seeds), graph.num_nodes, dtype=torch.float64)
    for i, first in enumerate(seeds.tolist()):
        walks = {first: 1.0}
        for _ in range(num_steps + 1):
            moved: dict[int, float] = {}
            for node, share in walks.items():
                sources = graph.col[graph.rowptr[node] : graph.rowptr[node + 1]].tolist()
                score[i, node] += share * (alpha if sources else 1)
                for source in sources:
                    moved[source] = moved.get(source, 0.0) + share * (1 - alpha) / len(sources)
            walks = moved
    return score


def walk_scores(graph, first: int, num_walks: int, num_steps: int, alpha: float, seed: int) -> Tensor:
    """[num_nodes]: the share of the walks, each kept up by the numbers of the operator, that stops at each node."""
    score = torch.zeros(graph.num_nodes, dtype=torch.float64)
    for walk in range(num_walks):
        node, moving = first, 1 / num_walks
        for step in range(num_steps + 1):
            sources = graph.col[graph.rowptr[node] : graph.rowptr[node + 1]].tolist()
            score[node] += moving * (alpha if sources else 1)
            if not sources:
                break
            moving *= 1 - alpha
            node = sources[random_draw(seed, 0, first, walk * num_steps + step) * len(sources) >> 64]
    return score


def curvature(adjacency: Tensor, i: int, j: int) -> float:
    """Balanced Forman curvature of the edge i - j of a simple undirected graph (Topping et al. 2022, definition 1)."""
    near = [set(row.nonzero().flatten().tolist()) for row in adjacency]
    most, least = max(len(near[i]), len(near[j])), min(len(near[i]), len(near[j]))
    if least == 1:
        return 0.0
    triangles = len(near[i] & near[j])
    through = [len((near[k] & near[j]) - near[i] - {i}) for k in near[i] - near[j] - {j}]
    through += [len((near[w] & near[i]) - near[j] - {j}) for w in near[j] - near[i] - {i}]
    squares = [count for count in through if count]
    flat = 2 / most + 2 / least - 2 + 2 * triangles / most + triangles / least
    return flat + (len(squares) / (max(squares) * most) if squares else 0.0)


def curvatures(adjacency: Tensor, *, leaves_row: bool = False) -> Tensor:
    """[N, N]: of every edge; leaves_row stops a row at its first non-neighbour, as the code in common use does."""
    out = torch.zeros(adjacency.shape, dtype=torch.float64)
    for i in range(len(adjacency)):
        for j in range(len(adjacency)):
            if adjacency[i, j]:
                out[i, j] = curvature(adjacency, i, j)
            elif leaves_row:
                break
    return out


def sdrf_choices(adjacency: Tensor) -> tuple[list[tuple[int, int]], list[float]]:
    """Every edge that may support the edge of least curvature, and the curvature that edge would have with it."""
    values = curvatures(adjacency).masked_fill(adjacency.triu(1) == 0, float("inf"))
    i, j = divmod(int(values.argmin()), len(adjacency))
    pairs, gains = [], []
    for k in [i, *adjacency[i].nonzero().flatten().tolist()]:
        for l in [j, *adjacency[j].nonzero().flatten().tolist()]:  # noqa: E741 (the paper's letter)
            if k != l and not adjacency[k, l]:
                more = adjacency.clone()
                more[k, l] = more[l, k] = 1
                pairs.append((k, l))
                gains.append(curvature(more, i, j))
    return pairs, gains


def sdrf(adjacency: Tensor, num_iterations: int, removal_bound: float | None = None) -> Tensor:
    """The adjacency after as many iterations that always take the largest gain."""
    adjacency = adjacency.clone()
    for _ in range(num_iterations):
        pairs, gains = sdrf_choices(adjacency)
        if pairs:
            k, l = pairs[gains.index(max(gains))]  # noqa: E741
            adjacency[k, l] = adjacency[l, k] = 1
        values = curvatures(adjacency).masked_fill(adjacency.triu(1) == 0, -float("inf"))
        if removal_bound is not None and values.max() > removal_bound:
            i, j = divmod(int(values.argmax()), len(adjacency))
            adjacency[i, j] = adjacency[j, i] = 0
        elif not pairs:
            break
    return adjacency


def fosr(adjacency: Tensor, num_edges: int, num_power_iterations: int, seed: int) -> list[tuple[int, int]]:
    """Edges added one by one: the smallest product over all missing edges, with the dense matrix."""
    adjacency, added = adjacency.double().clone(), []
    draws = [random_draw(seed, 0, v, 0) for v in range(len(adjacency))]
    x = torch.tensor([2 * ((bits >> 12) + 0.5) * 2.0**-52 - 1 for bits in draws], dtype=torch.float64)
    for iteration in range(num_power_iterations + num_edges):
        if iteration >= num_power_iterations:
            y = x / (1 + adjacency.sum(1)).sqrt()
            products = (y[:, None] * y).masked_fill(adjacency + torch.eye(len(x)) > 0, 0).triu()
            if products.min() >= 0:
                break
            i, j = divmod(int(products.argmin()), len(x))
            adjacency[i, j] = adjacency[j, i] = 1
            added.append((i, j))
        root = adjacency.sum(1).sqrt()
        x = x - (x @ root) / max(float(adjacency.sum()), 1.0) * root
        inverse = torch.where(root > 0, 1 / root, 0)
        x = x + inverse * (adjacency @ (inverse * x))
        x = x / x.norm()
    return added


def elias_fano_row(columns: list[int], num_nodes: int) -> bytes:
    """The code of a row: how many ones stand before each block of 256 bits but the first, the ones, at (high part +
    place), then the low bits of each column, the lowest bit first."""
    if not columns:
        return b""
    low = max((num_nodes - 1).bit_length() - len(columns).bit_length(), 0)
    length = len(columns) + ((num_nodes - 1) >> low) + 1
    ones = [(column >> low) + i for i, column in enumerate(columns)]
    counts = [sum(one < begin for one in ones) for begin in range(256, length, 256)]
    bits = sum(1 << one for one in ones)
    bits += sum((column & ((1 << low) - 1)) << (length + i * low) for i, column in enumerate(columns))
    code = bits.to_bytes((length + len(columns) * low + 7) // 8, "little")
    return b"".join(count.to_bytes(4, "little") for count in counts) + code


def temporal_encoder(encoder, prefix: Tensor, events: Tensor, num_events: Tensor, age: Tensor | None) -> Tensor:
    """TemporalEncoder with its own weights: token by token, softmax over the prefix and the earlier tokens."""
    rows = []
    for b in range(len(prefix)):
        tokens = list(prefix[b])
        for j in range(events.shape[1]):
            token = encoder.event(events[b, j]) + encoder.position[max(int(num_events[b]) - 1 - j, 0)]
            if age is not None:
                angles = [math.log(1 + float(age[b, j])) * 2 ** (-2 + 5 * f / 3) for f in range(4)]
                sines = [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
                token = token + encoder.age.weight @ torch.tensor(sines, dtype=torch.float64)
            tokens.append(token)
        for block in encoder.blocks:
            tokens = _temporal_block(block, tokens, prefix.shape[1])
        rows.append(torch.stack([encoder.norm(token) for token in tokens]))
    return torch.stack(rows)


def _temporal_block(block, tokens: list[Tensor], num_prefix: int) -> list[Tensor]:
    width = len(tokens[0]) // block.num_heads
    qkv = [block.qkv(block.norm_attention(token)).view(3, block.num_heads, width) for token in tokens]
    out = []
    for i, token in enumerate(tokens):
        seen = [j for j in range(len(tokens)) if j < num_prefix or j <= i]
        heads = []
        for h in range(block.num_heads):
            scores = torch.stack([qkv[i][0, h] @ qkv[j][1, h] / width**0.5 for j in seen]).softmax(0)
            heads.append(sum(score * qkv[j][2, h] for score, j in zip(scores, seen)))
        token = token + block.out(torch.cat(heads))
        out.append(token + block.mlp(block.norm_mlp(token)))
    return out


def long_term_loss(predicted: Tensor, future: Tensor, valid: Tensor) -> Tensor:
    """Mean over the valid future events of the log softmax of their score among those of the same place."""
    losses = []
    for b, n in valid.nonzero().tolist():
        scores = [predicted[b] @ future[c, n] for c in range(len(predicted)) if valid[c, n]]
        losses.append(torch.logsumexp(torch.stack(scores), 0) - predicted[b] @ future[b, n])
    return torch.stack(losses).mean() if losses else predicted.new_zeros(())


def drew_gcn(
    x, adjacencies, hops, num_layers, weight, gamma, beta, hop_weight, mean, var, eps, l2_norm, self_loops=True
):
    """A stack of DRew-GCN layers; hops lists (layer, shell or -1 for the node alone, state), adjacencies [N, N]."""
    states, own = [x], torch.eye(len(x), dtype=x.dtype)
    for t in range(num_layers):
        total = torch.zeros_like(x)
        for p, (layer, shell, state) in enumerate(hops):
            if layer != t:
                continue
            a = own if shell < 0 else adjacencies[shell] + own * self_loops
            scale = x.new_ones(len(x)) if shell < 0 else adjacencies[shell].sum(1).add(1).rsqrt()
            message = scale[:, None] * (a @ (scale[:, None] * states[state])) @ weight[p].T
            mu = message.mean(0) if mean is None else mean[p]
            variance = (message - mu).square().mean(0) if var is None else var[p]
            normed = (message - mu) * gamma[p] / (variance + eps).sqrt() + beta[p]
            total = total + (1 if hop_weight is None else hop_weight[p]) * normed.relu()
        out = states[-1] + total
        states.append(out / out.norm(dim=1, keepdim=True).clamp(min=1e-12) if l2_norm else out)
    return states[-1]


def gated_sum(rowptr: Tensor, col: Tensor, query: Tensor, key: Tensor, value: Tensor, eps: float) -> Tensor:
    rows = []
    for i, (begin, end) in enumerate(zip(rowptr.tolist()[:-1], rowptr.tolist()[1:])):
        sources = col[begin:end].long()
        gates = (query[i].double() + key[sources].double()).sigmoid()
        rows.append((gates * value[sources].double()).sum(0) / (gates.sum(0) + eps))
    return torch.stack(rows) if rows else query.double()
