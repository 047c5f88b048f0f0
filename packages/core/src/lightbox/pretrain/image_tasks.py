"""What the tower is pretrained on: dense ids of known triples, dense finding masks, and the report of each image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lightbox.phantom import Knobs, draw_cases, seed_range
from lightbox.phantom.geometry import finding_rows
from lightbox.phantom.ontology import DENSITIES, LOCATIONS, PLACE_LOCATION
from lightbox.phantom.scene import draw_scene
from lightbox.phantom.splits import triple_mask
from lightbox.phantom.world import CHUNK, RENDERERS

PATCH_PX = 8
WORLDS = (Knobs(), Knobs(vocabulary="triples"), Knobs(vocabulary="triples", distractors=1))
"""Half named classes, half any known triple: the tower must not only know the classes of one paper."""


@dataclass
class DenseSet:
    """Images with dense targets.

    `pixels` uint8 (n, h, w); `patch_ids` int (n, p): 0 background, else 1 + rank of the triple among the known ones;
    `patch_masks` bool (n, p, 64): finding pixels inside each patch, row by row; `reports` one text an image.
    """

    pixels: np.ndarray
    patch_ids: np.ndarray
    patch_masks: np.ndarray
    reports: list[str]


def known_rank() -> np.ndarray:
    """For each of the 224 triples, 1 + its rank among the known ones; 0 for held-out triples."""
    known = triple_mask("known")
    return np.where(known, np.cumsum(known), 0)


def dense_set(split: str, n_cases: int, *, seed: int = 0) -> DenseSet:
    """Draw images with dense targets from a phantom split, the worlds in turn."""
    parts = []
    share = n_cases // len(WORLDS)
    for k, knobs in enumerate(WORLDS):
        seeds = seed_range(split, seed + k, share)
        parts += [_dense_chunk(seeds[start : start + CHUNK], knobs) for start in range(0, share, CHUNK)]
    return DenseSet(
        np.concatenate([p.pixels for p in parts]),
        np.concatenate([p.patch_ids for p in parts]),
        np.concatenate([p.patch_masks for p in parts]),
        [report for p in parts for report in p.reports],
    )


def _dense_chunk(seeds: Sequence[int], knobs: Knobs) -> DenseSet:
    scene = draw_scene(seeds, knobs)
    pixels, masks = RENDERERS[knobs.modality](scene, knobs)
    rows, slots = finding_rows(scene)
    location = np.array(PLACE_LOCATION)[scene.place[rows, slots]]
    triple = (scene.shape[rows, slots] * len(DENSITIES) + scene.density[rows, slots]) * len(LOCATIONS) + location
    rank = known_rank()[triple]
    n, side = len(seeds), knobs.image_px // PATCH_PX
    union = np.zeros(pixels.shape, dtype=bool)
    np.logical_or.at(union, rows, masks)
    counts = _patches(masks, side).sum(axis=2)  # findings, patches
    best = np.zeros((n, side * side), dtype=np.int64)
    ids = np.zeros((n, side * side), dtype=np.int64)
    for row, count, index in zip(rows, counts, rank, strict=True):
        larger = count > best[row]
        ids[row][larger], best[row][larger] = index, count[larger]
    texts = [case.report.text for case in draw_cases(seeds, knobs, questions_per_case=0, with_pixels=False)]
    return DenseSet(pixels, ids, _patches(union, side), texts)


def _patches(images: np.ndarray, side: int) -> np.ndarray:
    n = len(images)
    tiles = images.reshape(n, side, PATCH_PX, side, PATCH_PX).swapaxes(2, 3)
    return tiles.reshape(n, side * side, PATCH_PX * PATCH_PX)
