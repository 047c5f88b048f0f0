"""Peaks of live tensor bytes against tensors whose bytes are known."""

import pytest
import torch
from torch import nn

from lightbox.bench.live_bytes import held_by, peak_bytes, storage_bytes

MEGA = 250_000  # float32 numbers in a megabyte


def test_the_peak_is_of_what_is_alive_together():
    def work():
        first = torch.ones(4 * MEGA)
        second = torch.ones(2 * MEGA)
        del first
        third = torch.ones(3 * MEGA)
        return second, third

    assert peak_bytes(work) == pytest.approx(6e6, rel=1e-3)


def test_what_is_held_counts_once_and_under_everything():
    held = torch.ones(MEGA)
    assert storage_bytes([held, held.view(10, -1), held[5:]]) == 4 * MEGA
    assert peak_bytes(lambda: torch.ones(MEGA), held=[held, held[:10]]) == pytest.approx(2e6, rel=1e-3)


def test_a_free_of_what_was_there_before_does_not_lower_the_peak():
    holder = [torch.ones(4 * MEGA)]

    def work():
        holder.clear()
        return torch.ones(MEGA)

    assert peak_bytes(work) == pytest.approx(1e6, rel=1e-3)


def test_owners_hold_parameters_buffers_moments_and_inputs():
    model = nn.Sequential(nn.Linear(100, 50), nn.BatchNorm1d(50))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.randn(8, 100)).sum().backward()
    optimizer.step()
    numbers = 100 * 50 + 50 + 2 * 50
    buffers = 2 * 50 * 4 + 8  # means, spreads, a count
    moments = 2 * 4 * numbers + 4 * 4  # and a count for each of four tensors
    batch = {"ids": torch.zeros(3, dtype=torch.long), "name": "x"}
    assert storage_bytes(held_by(model, optimizer, batch)) == 4 * numbers + buffers + moments + 24


def test_a_4_bit_layer_holds_its_codes_and_both_levels_of_scales():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    blocks = 256 * 512 // 64
    wanted = 256 * 512 // 2 + blocks + 4 * (blocks // 256) + 4 * (16 + 256) + 4
    assert storage_bytes(held_by(layer)) == wanted
