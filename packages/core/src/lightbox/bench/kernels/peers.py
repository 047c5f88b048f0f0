"""What an operator is compared with: the form that papers publish, and a good one in PyTorch.

Published forms are written here anew from papers and from what their code does: one image after another, matrices
stored whole. Good ones put segments side by side, wait for nothing and keep no matrix of attention; lengths and counts
are known to the host. `torch.compile` is given the good ones.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightbox.losses.language import IGNORED

_LOGITS = 1 << 22  # that the good form of column means holds at a time: 16 MiB


# ---- segment_select


def sort_each(scores: Tensor, lengths: Sequence[int], k: Tensor) -> Tensor:
    """Published (HiRED): each tile is sorted by itself, counts are read from the device, a mask is filled."""
    keep, start = torch.zeros(len(scores), dtype=torch.bool, device=scores.device), 0
    for length, count in zip(lengths, k.tolist(), strict=True):
        order = scores[start : start + length].argsort(descending=True)
        keep[start + order[:count]] = True
        start += length
    return keep.nonzero()[:, 0]


def top_side_by_side(scores: Tensor, lengths: Sequence[int], k: Tensor, cu: Tensor, most: int, total: int) -> Tensor:
    """Good: one top-k of all tiles, cut to each one's count, put in order."""
    top = _padded(scores, lengths, -torch.inf).topk(most, dim=1).indices  # s t
    return _in_order(top, k, cu, len(scores), total)


# ---- greedy_select


def pick_far_again(feat: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Published (DivPrune): the whole matrix of distances, and the minimum over all picks anew for each pick."""
    kept, start = [], 0
    for length, count in zip(lengths, counts, strict=True):
        unit = F.normalize(feat[start : start + length].float(), dim=1)
        distance = 1.0 - unit @ unit.T
        others = distance.clone().fill_diagonal_(torch.inf)
        picks = others.min(dim=1).values.argmax()[None]
        for _ in range(count - 1):
            nearest = distance[picks].min(dim=0).values
            picks = torch.cat([picks, nearest.argmax()[None]])
        kept.append(start + picks.sort().values)
        start += length
    return torch.cat(kept)


def pick_far(
    feat: Tensor, lengths: Sequence[int], k: Tensor, cu: Tensor, most: int, total: int, step: Callable | None = None
) -> Tensor:
    """Good: images side by side, the nearest pick of each token kept from step to step."""
    step = step or far_step
    cosine, is_token = _cosines(feat, lengths)
    rows = torch.arange(len(lengths), device=feat.device)
    pairs = torch.eye(cosine.shape[1], dtype=torch.bool, device=feat.device) | ~is_token[:, None]
    nearest = cosine.masked_fill(pairs, -2.0).amax(dim=2).masked_fill(~is_token, torch.inf)
    pick, picks = nearest.argmin(dim=1), []
    nearest = torch.full_like(nearest, -torch.inf).masked_fill(~is_token, torch.inf)
    for _ in range(most):
        picks.append(pick)
        nearest, pick = step(nearest, cosine, rows, pick)
    return _in_order(torch.stack(picks, dim=1), k, cu, len(feat), total)


def far_step(nearest: Tensor, cosine: Tensor, rows: Tensor, pick: Tensor) -> tuple[Tensor, Tensor]:
    """One pick of each image: what it is near to, and the next."""
    nearest = torch.maximum(nearest, cosine[rows, pick])
    nearest = nearest.scatter(1, pick[:, None], torch.inf)
    return nearest, nearest.argmin(dim=1)


def pick_likely_by_image(
    feat: Tensor, lengths: Sequence[int], counts: Sequence[int], relevance: Tensor, eps: float = 1e-6
) -> Tensor:
    """Published (CDPruner, Chen et al.): the whole kernel of an image, its factor row by row, each pick read back."""
    kept, start = [], 0
    for length, count in zip(lengths, counts, strict=True):
        unit, own = F.normalize(feat[start : start + length].float(), dim=1), relevance[start : start + length].float()
        kernel = own[:, None] * (unit @ unit.T) * own
        gain = kernel.diagonal().clone()
        factor = kernel.new_zeros(count, length)
        picks = []
        for number in range(count):
            pick = int(gain.argmax())
            past = factor[:number]
            factor[number] = (kernel[pick] - past[:, pick] @ past) / gain[pick].clamp(min=eps).sqrt()
            gain = gain - factor[number].square()
            gain[pick] = -torch.inf
            picks.append(pick)
        kept.append(start + torch.tensor(sorted(picks), device=feat.device))
        start += length
    return torch.cat(kept)


def pick_likely(
    feat: Tensor,
    lengths: Sequence[int],
    k: Tensor,
    cu: Tensor,
    most: int,
    total: int,
    relevance: Tensor,
    step: Callable | None = None,
) -> Tensor:
    """Good: images side by side. With a compiled `step` it is given the whole factor, so that shapes stay."""
    cosine, is_token = _cosines(feat, lengths)
    rows = torch.arange(len(lengths), device=feat.device)
    weight = _padded(relevance.float(), lengths, 0.0)
    gain = weight.square().masked_fill(~is_token, -torch.inf)
    factor, picks = cosine.new_zeros(len(rows), most, cosine.shape[1]), []
    for number in range(most):
        past = factor if step else factor[:, :number]
        factor[:, number], gain, pick = (step or likely_step)(gain, past, cosine, weight, rows)
        picks.append(pick)
    return _in_order(torch.stack(picks, dim=1), k, cu, len(feat), total)


def likely_step(
    gain: Tensor, past: Tensor, cosine: Tensor, weight: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """One pick of each image: its row of the factor, what the others still add, and the pick."""
    best, pick = gain.max(dim=1)
    column = weight[rows, pick][:, None] * cosine[rows, pick] * weight
    seen = (past[rows, :, pick][:, None] @ past)[:, 0]
    new = (column - seen) / best.clamp(min=1e-6).sqrt()[:, None]
    return new, (gain - new.square()).scatter(1, pick[:, None], -torch.inf), pick


# ---- attn_colmean


def mean_of_map(q: Tensor, k: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Published (what eager attention returns): the whole map of all heads, then its mean."""
    means = []
    for queries, keys in zip(q.split(list(lengths)), k.split(list(lengths)), strict=True):
        logits = queries.transpose(0, 1) @ keys.permute(1, 2, 0) * scale  # h m n
        means.append(logits.softmax(dim=2, dtype=torch.float32).to(q.dtype).mean(dim=0).mean(dim=0))
    return torch.cat(means)


def mean_in_pieces(q: Tensor, k: Tensor, lengths: Sequence[int], scale: float, lse: Tensor | None = None) -> Tensor:
    """Good: some queries at a time, so that a piece of the map stays in the cache."""
    means, start, heads = [], 0, q.shape[1]
    for length in lengths:
        queries = q[start : start + length].transpose(0, 1)  # h m d
        keys = k[start : start + length].permute(1, 2, 0)  # h d n
        mean = torch.zeros(length, device=q.device)
        step = max(32, _LOGITS // (heads * length))
        for begin in range(0, length, step):
            logits = (queries[:, begin : begin + step] @ keys).float() * scale
            if lse is None:
                share = logits.softmax(dim=2)
            else:
                share = (logits - lse[:, start + begin : start + min(begin + step, length), None]).exp()
            mean = mean + share.sum(dim=(0, 1))
        means.append(mean / (heads * length))
        start += length
    return torch.cat(means)


# ---- few_query_scores


def row_of_map(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Published (a tower with `output_attentions`): the whole map of all queries, of which one row is read."""
    share = (q @ k.mT * scale).softmax(dim=3, dtype=torch.float32).to(q.dtype)
    return share[:, :, 0, 1:].float().mean(dim=1)


def one_row(first: Tensor, k: Tensor, scale: float) -> Tensor:
    """Good: the one row of each head."""
    return ((first @ k.mT).float() * scale).softmax(dim=3)[:, :, 0, 1:].mean(dim=1)


# ---- temporal_keep


def keep_by_threshold(x: Tensor, total: int) -> Tensor:
    """Published (EVS): cosines to the frame before, all of them sorted, and a threshold read off the list."""
    change = 1 - F.cosine_similarity(x[1:].float(), x[:-1].float(), dim=2)
    change = torch.cat([torch.full_like(change[:1], 2.5), change]).flatten()  # above any: the first frame stays
    threshold = float(change.sort(descending=True).values[total - 1])
    return (change >= threshold).nonzero()[:, 0]


def keep_changed(x: Tensor, total: int) -> Tensor:
    """Good: each token's length once, products of neighbours, the most changed ones in order."""
    unit = F.normalize(x.float(), dim=2)
    change = 1 - (unit[1:] * unit[:-1]).sum(dim=2).flatten()
    first = torch.arange(x.shape[1], device=x.device)
    later = change.topk(total - x.shape[1]).indices.sort().values + x.shape[1]
    return torch.cat([first, later])


# ---- assign_merge


def merge_one_by_one(metric: Tensor, x: Tensor, idx: Tensor, lengths: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Published (VScan): every pair's product stored, then a mean for each kept token."""
    merged, start = [], 0
    for length, own in zip(lengths, idx.split(list(counts)), strict=True):
        is_kept = torch.zeros(length, dtype=torch.bool, device=x.device).index_fill_(0, own - start, True)
        dropped = start + (~is_kept).nonzero()[:, 0]
        likeness = F.cosine_similarity(metric[dropped][:, None].float(), metric[own][None].float(), dim=2)
        nearest = likeness.argmax(dim=1)
        for place, token in enumerate(own):
            group = torch.cat([x[token][None], x[dropped[nearest == place]]])
            merged.append(group.float().mean(dim=0).to(x.dtype))
        start += length
    return torch.stack(merged)


def merge_side_by_side(
    metric: Tensor, x: Tensor, idx: Tensor, lengths: Sequence[int], counts: Sequence[int], cu: Tensor, cu_kept: Tensor
) -> Tensor:
    """Good: cosines of all images in one product, then one scattered sum."""
    table = F.normalize(_padded(metric.float(), lengths, 0.0), dim=2)
    kept = F.normalize(_padded(metric.float()[idx], counts, 0.0), dim=2)
    likeness = table @ kept.mT  # s n t
    place = torch.arange(likeness.shape[2], device=x.device)
    likeness = likeness.masked_fill((place >= cu_kept.diff()[:, None])[:, None], -torch.inf)
    nearest = likeness.argmax(dim=2) + cu_kept[:-1, None]
    token = torch.arange(nearest.shape[1], device=x.device)
    bin_of = torch.where(token < cu.diff()[:, None], nearest, len(idx))  # padding goes to a row of its own
    bin_of = torch.cat([own[:length] for own, length in zip(bin_of, lengths, strict=True)])
    bin_of = bin_of.index_copy(0, idx, torch.arange(len(idx), device=x.device))
    total = torch.zeros(len(idx), x.shape[1], device=x.device).index_add(0, bin_of, x.float())
    share = torch.zeros(len(idx), device=x.device).index_add(0, bin_of, torch.ones(len(x), device=x.device))
    return (total / share[:, None]).to(x.dtype)


# ---- ragged_splice


def join_one_by_one(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    text: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Published (LLaVA): each row is cut open behind its first token and joined with its image, then all rows."""
    rows, places, targets = [], [], []
    for number, own in enumerate(idx.split(list(counts))):
        here = slice(number * text, (number + 1) * text)
        words, word_places, word_labels = table[text_ids[here]], text_pos[:, here], labels[here]
        rows.append(torch.cat([words[:1], vis[own], words[1:]]))
        places.append(torch.cat([word_places[:, :1], pos[:, own], word_places[:, 1:]], dim=1))
        ignored = torch.full((len(own),), IGNORED, dtype=labels.dtype, device=labels.device)
        targets.append(torch.cat([word_labels[:1], ignored, word_labels[1:]]))
    return torch.cat(rows), torch.cat(places, dim=1), torch.cat(targets)


def join_by_index(
    vis: Tensor,
    idx: Tensor,
    text_ids: Tensor,
    table: Tensor,
    layout: Tensor,
    pos: Tensor,
    text_pos: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Good: kept rows and words behind one another, and one gather that puts them in order."""
    row = torch.where(layout < 0, ~layout, layout + len(idx))
    emb = torch.cat([vis.index_select(0, idx), F.embedding(text_ids, table)]).index_select(0, row)
    places = torch.cat([pos.index_select(1, idx), text_pos], dim=1).index_select(1, row)
    targets = torch.cat([labels.new_full((len(idx),), IGNORED), labels]).index_select(0, row)
    return emb, places, targets


# ---- what good forms share


def _padded(rows: Tensor, lengths: Sequence[int], fill: float) -> Tensor:
    """Packed rows -> s n ..., as long as the longest."""
    if len(set(lengths)) == 1:
        return rows.view(len(lengths), lengths[0], *rows.shape[1:])
    return pad_sequence(rows.split(list(lengths)), batch_first=True, padding_value=fill)


def _cosines(feat: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cosines s n n of each image's tokens, and which of them are tokens: s n."""
    unit = F.normalize(_padded(feat.float(), lengths, 0.0), dim=2)
    is_token = (
        torch.arange(unit.shape[1], device=feat.device) < torch.tensor(list(lengths), device=feat.device)[:, None]
    )
    return unit @ unit.mT, is_token


def _in_order(order: Tensor, k: Tensor, cu: Tensor, n_tokens: int, total: int) -> Tensor:
    """The first k[s] picks of each segment as rising indices of tokens."""
    is_kept = torch.arange(order.shape[1], device=order.device) < k[:, None]
    return torch.where(is_kept, order + cu[:-1, None], n_tokens).flatten().sort().values[:total]
