"""What only a card can show: its allocator runs out, moments are paged, 8-bit moments serve every precision."""

import pytest
import torch
from torch import nn

from lightbox.config import TrainConfig
from lightbox.errors import WorkError
from lightbox.files import file_sha256
from lightbox.testing.training import fit_tagger, make_source, make_tagger
from lightbox.train.batches import BatchSource

pytestmark = pytest.mark.gpu
ON_CARD = {"device": "cuda"}
WIDTH = 400  # a matrix has 160,000 elements: above the 100,000 from which bitsandbytes pages moments


class CutError(Exception):
    """Ends a training from outside, as a kill would."""


class Wide(nn.Module):
    """A tagger that spends a fixed number of bytes a row."""

    def __init__(self, bytes_a_row):
        super().__init__()
        self.tagger = make_tagger(dropout=0.0)
        self.elements = bytes_a_row // 4

    def forward(self, ids):
        spent = torch.zeros(len(ids), self.elements, device=ids.device)
        return self.tagger(ids) + spent.sum()


def test_a_real_shortage_halves_the_micro_batch_and_the_rest_fits(tmp_path):
    free, _ = torch.cuda.mem_get_info()
    model = Wide(int(free * 0.3))  # 3 rows fit, 4 do not
    extras = {"train": TrainConfig(auto_batch=True)}
    source = make_source(batch_size=8)
    _, history = fit_tagger(
        tmp_path, model=model, source=source, optim={"batch_size": 8, "max_steps": 3}, extras=extras, **ON_CARD
    )
    assert history["train/micro_batch_size"] == [[1, 4.0], [1, 2.0]]
    with pytest.raises(WorkError, match=r"8 items in a forward pass \(CUDA out of memory\. Tried to allocate"):
        fit_tagger(
            tmp_path / "plain", model=model, source=make_source(batch_size=8), optim={"batch_size": 8}, **ON_CARD
        )


def squares_source():
    """Rows of noise; nothing in this training has a form that a card computes in changing order."""
    rows = torch.randn(24, WIDTH, generator=torch.Generator().manual_seed(0))
    return BatchSource(24, lambda indices: rows[indices], batch_size=4, seed=0)


def squares_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def squares(model, batch):
    return (model(batch) - 1).square().sum(), len(batch), {}


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit", "paged_adamw_8bit"])
def test_moments_continue_where_they_stopped(tmp_path, optimizer):
    options = {"optim": {"optimizer": optimizer, "max_steps": 8}, "save_every_steps": 4} | ON_CARD
    fit_tagger(tmp_path / "straight", model=squares_model(), source=squares_source(), step=squares, **options)
    calls = []

    def step(model, batch):
        if len(calls) == 6:
            raise CutError
        calls.append(None)
        return squares(model, batch)

    with pytest.raises(CutError):
        fit_tagger(tmp_path / "cut", model=squares_model(), source=squares_source(), step=step, **options)
    model, _ = fit_tagger(tmp_path / "cut", model=squares_model(9), source=squares_source(), step=squares, **options)
    assert model[0].weight.device.type == "cuda"
    for name in ("model.safetensors", "optimizer.safetensors"):
        one, two = (tmp_path / run / "checkpoints/step-00000008" / name for run in ("straight", "cut"))
        assert file_sha256(one) == file_sha256(two), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_8_bit_moments_learn_in_every_precision(tmp_path, precision):
    _, history = fit_tagger(
        tmp_path,
        model=make_tagger(width=80, dropout=0.0),
        optim={"optimizer": "adamw_8bit", "max_steps": 40, "lr": 0.01},
        log_every_steps=10,
        precision=precision,
        **ON_CARD,
    )
    losses = [value for _, value in history["train/loss"]]
    assert losses[-1] < 0.6 * losses[0]
