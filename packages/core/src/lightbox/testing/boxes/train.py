"""Train the head, score it, keep it."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from lightbox.paper import features
from lightbox.paper.baselines import beside_score
from lightbox.runs import folders
from lightbox.testing.boxes import evaluate
from lightbox.testing.boxes.config import Config
from lightbox.testing.boxes.model import HEAD, Head, name_ids, patches_of
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything


def run(
    cfg: Config, base: Any, folder: Path, *, cache: Path, needs: Mapping[str, Path], keeps_model: bool, **_: Any
) -> None:
    """Run one arm and leave its files in `folder`; see `lightbox.paper.entries`."""
    folder.mkdir(parents=True, exist_ok=True)
    train, scored = evaluate.load_findings(cfg)
    seed_everything(cfg.run.seed, cfg.run.threads)
    vision = features.load_features(cfg.model, train, cache=cache)
    head, side = Head(vision.shape[-1]), int(vision.shape[1] ** 0.5)

    def collate(places: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        chosen = [train.samples[place] for place in places]
        patches = torch.stack([patches_of(sample.record.boxes[0], side) for sample in chosen])
        return vision[[s.image for s in chosen]], name_ids([s.record.name for s in chosen]), patches

    def step(model: Head, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int, dict[str, Tensor]]:
        logits = model(*batch[:2])
        return F.binary_cross_entropy_with_logits(logits, batch[2], reduction="sum"), logits.numel(), {}

    size, seed = cfg.optim.batch_size, cfg.run.seed
    batches = BatchSource(len(train.samples), collate, batch_size=size, seed=seed, ids=train.ids)
    if cfg.objective.is_trained:
        fit(head, step, batches, optim=cfg.optim, run=cfg.run, out=folder, train=cfg.train)
    else:
        if "head" in needs:  # a head that an earlier run saved; arm 0 has none
            head.load_state_dict(load_file(needs["head"] / HEAD))
        folders.write_card(folder, {"parameters": sum(p.numel() for p in head.parameters()), "device": "cpu"})
        folders.write_history(folder, {})
    evaluate.evaluate(cfg, head, scored, folder=folder, cache=cache)
    if keeps_model:
        (folder / HEAD).parent.mkdir(exist_ok=True)
        save_file(head.state_dict(), folder / HEAD)
    prior = fmean(row["iou"] for row in evaluate.guess_rows(train, scored))
    folders.add_to_card(folder, beside_score(cfg, train, scored, {"location_prior": prior}))
    folders.drop_checkpoints(folder)
