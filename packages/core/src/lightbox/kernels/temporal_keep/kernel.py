"""The change of `temporal_keep` in Triton: a program owns a few places and walks over frames.

The frame before stays in registers, so a token is read once, and no difference of frames is stored. Frames are walked
in stretches, since there are often fewer places than fill the card; a stretch reads one frame more than it scores.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl

_HELD = 4096  # numbers of one frame that a program holds, unless a single token has more
_FRAMES = 16


@triton.jit
def _change(
    x, score, first_change, x_f, x_n, x_d, n_frames, n_tokens, width,
    IS_COS: tl.constexpr, FRAMES: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    begin = tl.program_id(1) * FRAMES
    end = tl.minimum(begin + FRAMES, n_frames)
    d = tl.arange(0, D)
    is_there = (token < n_tokens)[:, None] & (d < width)[None, :]
    at = x + token.to(tl.int64)[:, None] * x_n + d[None, :] * x_d
    frame_before = tl.maximum(begin - 1, 0).to(tl.int64)  # the first frame has none, and its change is given
    before = tl.load(at + frame_before * x_f, mask=is_there, other=0.0).to(tl.float32)
    before_square = tl.sum(before * before, 1)
    for frame in range(begin, end):
        place = tl.zeros([TOKENS], tl.int64) + frame
        now = tl.load(at + place[:, None] * x_f, mask=is_there, other=0.0).to(tl.float32)
        if IS_COS:
            square = tl.sum(now * now, 1)
            norms = tl.maximum(tl.sqrt_rn(square), 1e-8) * tl.maximum(tl.sqrt_rn(before_square), 1e-8)
            change = 1.0 - tl.div_rn(tl.sum(now * before, 1), norms)
            before_square = square
        else:
            change = tl.sum(tl.abs(now - before), 1) / width
        change = tl.where(place == 0, first_change, change)
        tl.store(score + place * n_tokens + token, change, mask=token < n_tokens)
        before = now


def change(x, score, first_change, *, is_cos):
    """Launch: `score` [F, Nf] is written whole, `first_change` in its first row."""
    n_frames, n_tokens, width = x.shape
    d = triton.next_power_of_2(width)
    tokens = max(1, min(_HELD // d, triton.next_power_of_2(n_tokens)))
    _change[(triton.cdiv(n_tokens, tokens), triton.cdiv(n_frames, _FRAMES))](
        x, score, first_change, *x.stride(), n_frames, n_tokens, width,
        IS_COS=is_cos, FRAMES=_FRAMES, TOKENS=tokens, D=d, num_warps=4 if d <= _HELD else 16,
    )  # fmt: skip
