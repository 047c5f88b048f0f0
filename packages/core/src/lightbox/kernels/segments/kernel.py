"""Which rows a program works on, when segments have lengths that only the device knows.

A grid is made on the host, from the number of tokens T and of segments S alone: at most T / tile + S tiles hold rows,
and a program past the last one finds an empty range. Every program adds up the tiles of the segments before it, which
costs a read of S offsets and no wait.
"""

# triton.jit makes a launcher of a function, which its annotations do not say
# pyright: reportCallIssue=false, reportGeneralTypeIssues=false, reportIndexIssue=false

import triton
import triton.language as tl


@triton.jit
def load_span(cu, segment, n_segments, n_rows):
    """First row and end of a segment, within the rows there are; an empty range where there is no such segment."""
    is_there = segment < n_segments
    start = tl.load(cu + segment, mask=is_there, other=0)
    stop = tl.load(cu + segment + 1, mask=is_there, other=0)
    start = tl.minimum(tl.maximum(start, 0), n_rows)
    stop = tl.minimum(tl.maximum(stop, start), n_rows)
    return start, stop


@triton.jit
def find_tile(cu, n_segments, n_rows, tile, every, TILE: tl.constexpr, SEGMENTS: tl.constexpr):
    """Segment, its first row and end, and the place of tile number `tile` in it, when every `every`-th row counts."""
    s = tl.arange(0, SEGMENTS)
    start, stop = load_span(cu, s, n_segments, n_rows)
    used = (stop - start + every - 1) // every
    tiles = (used + TILE - 1) // TILE
    upto = tl.cumsum(tiles, 0)
    segment = tl.sum((upto <= tile).to(tl.int32), 0)
    is_here = s == segment
    first = tl.sum(tl.where(is_here, start, 0), 0)
    end = tl.sum(tl.where(is_here, stop, 0), 0)
    place = tile - tl.sum(tl.where(is_here, upto - tiles, 0), 0)
    return segment, first, end, place


@triton.jit
def load_counts(k, segment, n_segments, SEGMENTS: tl.constexpr):
    """How many rows all segments before this one keep, and how many this one."""
    s = tl.arange(0, SEGMENTS)
    counts = tl.load(k + s, mask=s < n_segments, other=0)
    return tl.sum(tl.where(s < segment, counts, 0), 0), tl.sum(tl.where(s == segment, counts, 0), 0)


def n_tiles(n_rows, n_segments, tile):
    """Tiles that hold any row are at most this many, however rows are shared among segments."""
    return n_rows // tile + n_segments


def block_of(n_segments):
    """Segments that a program looks at: a power of 2."""
    return triton.next_power_of_2(max(1, n_segments))
