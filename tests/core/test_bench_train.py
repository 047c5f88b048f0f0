"""The benchmark's own claims: same batches on both sides, features equal to the tower's. Imports transformers."""

import pytest
import torch

from lightbox.errors import WorkError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench():
    return pytest.importorskip("lightbox.bench.train")


def test_each_ratio_is_measured_against_its_named_peer(bench):
    rows = bench.run(epochs=1, repeats=1, n_items=32, batch_size=8)
    assert [(row["case"], row["peer"]) for row in rows] == [
        ("step driver", "transformers Seq2SeqTrainer"),
        ("length bucketing", "step driver without it"),
        ("cached features", "vision tower in every step"),
    ]
    assert all(row["ratio"] > 0 and row["value"] > 0 for row in rows)
    assert all("1 pairs of 4 steps of 8" in row["notes"] for row in rows)


def test_both_sides_train_on_the_same_batches_to_the_same_weights(bench, monkeypatch):
    """Same initial weights, batches, optimiser, schedule and clipping: without dropout the weights end up alike."""
    items = bench.make_items(32)
    models, seen = [], []
    make = bench._probed_model

    def remember():
        model, times = make()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):  # attention's own
                module.dropout = 0.0
        seen.append([])
        model.register_forward_pre_hook(
            lambda module, args, kwargs, log=seen[-1]: log.append(kwargs["labels"].clone()), with_kwargs=True
        )
        models.append(model)
        return model, times

    monkeypatch.setattr(bench, "_probed_model", remember)
    bench.driver_rate(4, items=items, batch_size=8)
    bench.trainer_rate(4, items=items, batch_size=8)
    assert len(seen[0]) == len(seen[1]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
    for (name, a), b in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-5), name


def test_cached_features_are_what_the_tower_gives(bench):
    items = bench.make_items(8)
    model, _ = bench._probed_model()
    model.eval()
    cached, live = (items.collate([2, 5], has_pixels=has_pixels) for has_pixels in (False, True))
    assert set(cached) ^ set(live) == {"features", "pixels"}
    with torch.no_grad():
        features = bench.image_features(model.tower, live["pixels"])
        assert features.shape == cached["features"].shape
        given = model(**cached | {"features": features})["logits"]
        assert torch.equal(given, model(**live)["logits"])
        assert not torch.equal(given, model(**cached | {"features": features.flip(0)})["logits"])


def test_workers_are_measured_against_a_run_in_line_that_learns_the_same(monkeypatch):
    workers = pytest.importorskip("lightbox.bench.workers")
    monkeypatch.setattr(workers, "IMAGE_PX", 64)
    (row,) = workers.run(repeats=1, steps=2)
    assert (row["case"], row["peer"]) == ("rows prepared by 2 workers", "in line, train.workers=0")
    assert row["ratio"] > 0
    assert "1 pairs of 2 steps of 4" in row["notes"]
    assert "64 px" in row["notes"]
    monkeypatch.setattr(workers, "rate", lambda files, steps, *, workers: (1.0, [[1, float(workers)]]))
    with pytest.raises(WorkError, match="The losses with workers are not those in line"):
        workers.run(repeats=1, steps=2)
