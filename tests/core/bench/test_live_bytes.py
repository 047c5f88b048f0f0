"""Peaks of live tensor bytes against tensors whose bytes are known."""

import pytest
import torch
import torch.nn.functional as F
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

    assert peak_bytes(work) == 6 * 4 * MEGA


def test_what_is_held_counts_once_and_under_everything():
    held = torch.ones(MEGA)
    assert storage_bytes([held, held.view(10, -1), held[5:]]) == 4 * MEGA
    assert peak_bytes(lambda: torch.ones(MEGA), held=[held, held[:10]]) == 2 * 4 * MEGA


def test_a_free_of_what_was_there_before_does_not_lower_the_peak():
    holder = [torch.ones(4 * MEGA)]

    def work():
        holder.clear()
        return torch.ones(MEGA)

    assert peak_bytes(work) == 4 * MEGA


def test_views_and_work_in_place_take_nothing():
    held = torch.ones(MEGA)

    def work():
        held.view(10, -1).add_(1)
        return torch.ones(MEGA).mul_(2).view(10, -1)[3:].t()

    assert peak_bytes(work) == 4 * MEGA


def test_a_list_takes_memory_as_a_tensor():
    assert peak_bytes(lambda: torch.tensor([1.0] * 1000) + 1) == 2 * 4000


def test_a_backward_pass_takes_what_a_hand_adds_up():
    x, first, second = torch.ones(10, 4), nn.Linear(4, 16, bias=False), nn.Linear(16, 8, bias=False)

    def work():
        second(first(x).relu()).sum().backward()

    work()
    for parameter in (first.weight, second.weight):
        parameter.grad = None
    # the sum and its gradient, ReLU's result, the gradients of the second matrix, of that result and of ReLU's input
    assert peak_bytes(work) == 4 * (1 + 1 + 10 * 16 + 8 * 16 + 10 * 16 + 10 * 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_onednn", [True, False])
def test_what_a_kernel_works_in_is_not_counted(monkeypatch, has_onednn, dtype):
    """oneDNN reorders the weights of a convolution, torch's own kernel writes out all windows of the image."""
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", has_onednn)
    pixels, weights = torch.ones(4, 3, 56, 56, dtype=dtype), torch.ones(32, 3, 7, 7, dtype=dtype)
    assert peak_bytes(lambda: F.conv2d(pixels, weights)) == 4 * 32 * 50 * 50 * dtype.itemsize


def test_a_matrix_that_bitsandbytes_dequantises_counts_while_it_is_multiplied():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear4bit(256, 512, bias=False, compress_statistics=True, quant_type="nf4").to("cpu")
    x = torch.ones(10, 256)
    layer(x)
    scales, matrix, result = 256 * 512 // 64, 256 * 512, 10 * 512
    assert peak_bytes(lambda: layer(x)) == 4 * (scales + matrix + result)


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
