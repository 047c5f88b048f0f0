"""What each method chooses, on cases made by hand."""

import logging

import pytest
import torch
import torch.nn.functional as F

from lightbox.pruning.layouts import LAYOUTS, finding_on_grid
from lightbox.pruning.methods import hired, temporal
from lightbox.pruning.methods.ordering import cells, patch_cells
from lightbox.pruning.methods.table import BEFORE, METHODS
from lightbox.pruning.options import Options
from lightbox.pruning.pipeline import prune
from lightbox.pruning.regions import tokens_of
from lightbox.pruning.types import TokenGrid, VisualBatch
from lightbox.testing.plain_models import PRUNING_SETTINGS

BEFORE_LLM = [name for name, method in METHODS.items() if method.where == BEFORE]


def batch_of(*sizes, **columns):
    """Images of rows x columns with random features and looks."""
    random = torch.Generator().manual_seed(0)
    total = sum(rows * width for rows, width in sizes)
    grids = [TokenGrid.plain(*size) for size in sizes]
    given = {
        "x": torch.randn(total, 8, generator=random),
        "attention": torch.rand(total, generator=random),
        "early_attention": torch.rand(total, generator=random),
        "metric": torch.randn(total, 4, generator=random),
        "finding": torch.rand(total, generator=random),
        "regions": [[[0, 1], [5]] for _ in sizes],
        "groups": [list(range(len(sizes)))],
    }
    counts = [rows * width for rows, width in sizes]
    return VisualBatch(counts=counts, grids=grids, keys=torch.arange(len(sizes)) + 7, **(given | columns))


def select(method, batch, counts, **options):
    options = {"floor_uniform": METHODS[method].floor} | options
    return METHODS[method].select(batch, counts, Options(**options))


@pytest.mark.parametrize("method", BEFORE_LLM)
@pytest.mark.parametrize("counts", [[1, 1, 1], [7, 3, 12], [35, 16, 48], [34, 15, 47]])
def test_counts_are_exact_and_order_is_kept(method, counts):
    selection = select(method, batch_of((5, 7), (4, 4), (6, 8)), counts)
    assert len(selection.idx) == sum(selection.counts) == sum(counts)
    assert (selection.idx.diff() > 0).all()
    if method != "temporal":  # which divides the budget of a stack anew; these are three stacks of one
        assert list(selection.counts) == counts
    ends = torch.tensor([35, 51, 99])
    starts = torch.tensor([0, 35, 51])
    for piece, start, end in zip(selection.idx.split(list(selection.counts)), starts, ends, strict=True):
        assert ((piece >= start) & (piece < end)).all()
    if selection.merged is not None:
        assert selection.merged.shape == (sum(counts), 8)


@pytest.mark.parametrize("method", BEFORE_LLM)
def test_an_image_keeps_the_same_tokens_whatever_stands_beside_it(method):
    sizes = [(5, 7), (4, 4), (6, 8)]
    whole = batch_of(*sizes, groups=[[0], [1], [2]])
    together = select(method, whole, [9, 4, 12])
    pieces = together.idx.split(list(together.counts))
    names = ("x", "attention", "early_attention", "metric", "finding")
    for image, count in enumerate([9, 4, 12]):
        start, end = whole.starts[image : image + 2]
        own = {name: getattr(whole, name)[start:end] for name in names}
        keyed = VisualBatch(
            counts=[end - start],
            grids=[whole.grids[image]],
            groups=[[0]],
            keys=whole.keys[image : image + 1],
            regions=[whole.regions[image]],
            **own,
        )
        alone = select(method, keyed, [count])
        assert torch.equal(alone.idx, pieces[image] - start)


def test_uniform_grid_is_even_and_a_pool_is_a_mean_of_its_cell():
    grid = TokenGrid.plain(6, 6)
    cell_of, middle = patch_cells(grid, 9)
    # cells of 2 x 2, each with its first patch, the upper left of the four in the middle
    assert middle.tolist() == [row * 12 + column * 2 for row in range(3) for column in range(3)]
    assert torch.bincount(cell_of).tolist() == [4] * 9
    batch = batch_of((6, 6))
    pooled = select("avg_pool", batch, [9]).merged
    torch.testing.assert_close(pooled[0], batch.x[[0, 1, 6, 7]].mean(dim=0))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 5, 24])
@pytest.mark.parametrize("columns", [1, 3, 24])
def test_cells_cover_a_plane_once_at_every_count(rows, columns):
    for count in range(1, rows * columns + 1):
        covered = torch.zeros(rows, columns, dtype=torch.long)
        made = cells(rows, columns, count)
        assert len(made) == count
        for (top, bottom), (left, right) in made:
            covered[top:bottom, left:right] += 1
        assert (covered == 1).all()


def test_random_depends_on_seed_and_image_and_is_even():
    batch = batch_of((20, 20), (20, 20))
    first, again = (select("random", batch, [100, 100], seed=0) for _ in range(2))
    other = select("random", batch, [100, 100], seed=1)
    assert torch.equal(first.idx, again.idx)
    assert not torch.equal(first.idx, other.idx)
    assert not torch.equal(first.idx[:100], first.idx[100:] - 400)
    scores = first.scores[:400]
    assert abs(scores.mean() - 0.5) < 0.05
    assert abs(torch.corrcoef(torch.stack([scores[:-1], scores[1:]]))[0, 1]) < 0.15


def test_top_k_is_of_the_look_and_ties_go_to_the_lower_place():
    look = torch.tensor([0.1, 0.5, 0.5, 0.5])
    assert select("cls_topk", batch_of((2, 2), attention=look), [2]).idx.tolist() == [1, 2]


def test_floor_of_an_even_grid_holds():
    look = torch.linspace(1, 0, 36)  # everything looks at the top
    batch = batch_of((6, 6), attention=look)
    plainly = select("cls_topk", batch, [16]).idx
    floored = select("cls_topk", batch, [16], floor_uniform=0.25).idx
    grid = patch_cells(batch.grids[0], 4)[1]
    assert plainly.max() == 15
    assert set(grid.tolist()) <= set(floored.tolist())
    assert len(set(floored.tolist()) & set(range(12))) == 12


def test_divprune_takes_the_farthest_next():
    angles = torch.tensor([0.0, 0.1, 1.5, 3.0])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    # first the one farthest from its nearest neighbour (3.0 and 1.5 are 1.5 apart, 1.5 and 0.1 are 1.4)
    assert select("divprune", batch_of((2, 2), x=x), [2]).idx.tolist() == [0, 3]


def test_cdpruner_prefers_relevant_tokens_and_drops_copies():
    x = torch.eye(4)[[0, 0, 1, 2]] + 0.01 * torch.eye(4)
    relevance = torch.tensor([1.0, 0.9, 0.2, 0.5])
    assert select("cdpruner", batch_of((2, 2), x=x, relevance=relevance), [2]).idx.tolist() == [0, 3]


def test_dart_keeps_pivots_and_what_is_least_like_them():
    x = torch.tensor([[3.0, 0.0], [1.0, 0.1], [0.0, 1.0], [1.0, 1.0]])
    assert select("dart", batch_of((2, 2), x=x), [2], pivots=1).idx.tolist() == [0, 2]


def test_vscan_takes_half_from_every_window():
    early = torch.zeros(36)
    early[[0, 5, 30, 35]] = torch.tensor([0.4, 0.3, 0.2, 0.1])  # one in each window of 3 x 3
    deep = torch.zeros(36)
    deep[[1, 2, 3, 4]] = 1.0
    batch = batch_of((6, 6), early_attention=early, attention=deep)
    selection = select("vscan", batch, [8], windows=3)
    assert selection.idx.tolist() == [0, 1, 2, 3, 4, 5, 30, 35]
    unit = F.normalize(batch.x, dim=1)
    goes_to = (unit @ unit[selection.idx].T).argmax(dim=1)
    goes_to[selection.idx] = torch.arange(8)
    torch.testing.assert_close(selection.merged[0], batch.x[goes_to == 0].mean(dim=0))


def test_visionzip_merges_by_keys_and_its_code_adds_norms():
    look = torch.tensor([0.9, 0.1, 0.1, 0.1])
    metric = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    batch = batch_of((2, 2), attention=look, metric=metric)
    selection = select("visionzip", batch, [2], contextual=0.5)
    assert selection.idx.tolist() == [0, 1]
    torch.testing.assert_close(selection.merged[1], batch.x[1:].mean(dim=0))
    compat = select("visionzip", batch, [2], contextual=0.5, compat="reference_code")
    torch.testing.assert_close(compat.merged[1], batch.x[1] + batch.x[2:].mean(dim=0))


def next_grid(llava_next, size):
    layout = LAYOUTS["llava_next"](llava_next.model, "model.vision_tower")
    inputs = {"image_sizes": torch.tensor([size]), "pixel_values": torch.zeros(1, 5, 3, 56, 56)}
    return layout.grids(inputs)[0]


def test_hired_gives_a_bright_quadrant_to_its_own_tile(llava_next):
    """A lesion in the upper right of the whole image: the paper's quadrants find its tile, the code's strips do not."""
    grid = next_grid(llava_next, (112, 112)).shown
    assert grid.tiles == (2, 2)
    whole = torch.zeros(4, 4)
    whole[:2, 2:] = 1.0
    right = hired.tile_weights(whole.flatten(), grid, is_strips=False)
    assert right.tolist() == [0, 4, 0, 0]
    strips = hired.tile_weights(whole.flatten(), grid, is_strips=True)
    assert strips.tolist() == [2, 2, 0, 0]
    total = len(grid)
    early = torch.zeros(total)
    early[:16] = whole.flatten()
    batch = VisualBatch(
        x=torch.randn(total, 4),
        counts=[total],
        grids=[grid],
        groups=[[0]],
        keys=torch.tensor([1]),
        attention=torch.rand(total, generator=torch.Generator().manual_seed(1)),
        early_attention=early,
    )
    kept = select("hired", batch, [20]).idx
    of_tile = torch.bincount(grid.tile[kept], minlength=5)
    assert of_tile.tolist() == [10, 0, 10, 0, 0]
    strips = torch.bincount(grid.tile[select("hired", batch, [20], compat="reference_code").idx], minlength=5)
    assert strips.tolist() == [10, 5, 5, 0, 0]


def test_hired_finds_tiles_through_cut_margins(llava_next):
    """A wide image on 1 x 2 tiles: its margins are cut, and the left half of the whole image is the left tile."""
    grid = next_grid(llava_next, (40, 112)).shown
    assert grid.tiles == (1, 2)
    whole = torch.zeros(4, 4)
    whole[:, :2] = 1.0
    assert hired.tile_weights(whole.flatten(), grid, is_strips=False).tolist() == [8, 0]


def test_temporal_keeps_the_first_slice_and_what_changes():
    still = torch.eye(4)
    slices = [still, still.clone(), still.clone()]
    slices[2][1] = torch.tensor([0.0, 0.0, 0.0, 1.0])  # one token changes in the last slice
    batch = batch_of((2, 2), (2, 2), (2, 2), x=torch.cat(slices), groups=[[0, 1, 2]])
    selection = select("temporal", batch, [2, 2, 2], min_tokens=0)
    assert selection.idx.tolist()[:4] == [0, 1, 2, 3]  # the whole first slice (the fault in Hulu-Med's code keeps one)
    assert 9 in selection.idx.tolist()
    assert sum(selection.counts) == 6
    least = select("temporal", batch, [2, 2, 2], min_tokens=1)
    assert list(least.counts) == [4, 1, 1]


def test_temporal_begins_a_new_stack_at_another_size():
    grids = [TokenGrid.plain(2, 2), TokenGrid.plain(2, 2), TokenGrid.plain(3, 2)]
    assert temporal.stacks([0, 1, 2], grids) == [[0, 1], [2]]


def test_small_budget_shares_the_first_slice_too():
    batch = batch_of(*[(4, 4)] * 3, groups=[[0, 1, 2]])
    selection = select("temporal", batch, [3, 3, 3])
    assert selection.counts[0] == 3
    assert sum(selection.counts) == 9


def spots(*places, size=24):
    """A map with small findings, the first one large and strong."""
    made = torch.zeros(size, size)
    made[2:12, 2:12] = 0.9
    for row, column in places:
        made[row : row + 2, column : column + 2] = 0.6
    return made


def test_every_region_keeps_a_token_where_top_k_loses_the_small_ones():
    finding = spots((20, 20), (1, 21), (21, 1))
    grid = TokenGrid.plain(8, 8)
    values = finding_on_grid(finding, grid)
    found = tokens_of(finding, grid, 0.5)
    assert len(found) == 4
    batch = batch_of((8, 8), finding=values, regions=[found])
    safe = set(select("lesion_safe", batch, [12]).idx.tolist())
    rival = set(select("finding_topk", batch, [12]).idx.tolist())
    assert all(safe & set(region) for region in found)
    assert sum(bool(rival & set(region)) for region in found) == 1


def test_regions_that_touch_at_a_corner_are_one_and_apart_are_two_though_they_share_a_token():
    finding = torch.zeros(8, 8)
    finding[0, 0] = finding[1, 1] = 0.7
    finding[0, 3] = 0.8
    found = tokens_of(finding, TokenGrid.plain(2, 2), 0.5)
    assert found == [[0], [0]]


def test_more_regions_than_tokens_keep_the_strongest_and_say_so(caplog):
    finding = torch.zeros(6, 6)
    for place, value in enumerate((0.6, 0.9, 0.7)):
        finding[2 * place, 2 * place] = value
    grid = TokenGrid.plain(6, 6)
    batch = batch_of((6, 6), finding=finding.flatten(), regions=[tokens_of(finding, grid, 0.5)])
    with caplog.at_level(logging.WARNING):
        kept = select("lesion_safe", batch, [2]).idx.tolist()
    assert kept == [14, 28]
    assert "3 regions" in caplog.text


def test_an_empty_map_leaves_an_even_grid():
    batch = batch_of((6, 6), finding=torch.zeros(36), regions=[[]])
    assert torch.equal(select("lesion_safe", batch, [9]).idx, select("uniform_grid", batch, [9]).idx)


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-next", "medgemma-4b", "qwen2-vl-7b", "qwen2.5-vl-7b"])
def test_looks_are_those_of_the_models_own_attention_weights(plain_models, name):
    """Scores from recorded queries and keys against the weights that eager attention returns."""
    own = plain_models(name, "eager")
    inputs = own.inputs([0])
    tower = own.model.get_submodule("model.visual" if name.startswith("qwen") else "model.vision_tower")
    weights = []

    def record(_module, _args, output):
        weights.append(output[1])

    if name.startswith("qwen"):
        blocks, part = tower.blocks, "attn"
    else:
        blocks, part = max((m for m in tower.modules() if isinstance(m, torch.nn.ModuleList)), key=len), "self_attn"
    layer = {"llava-1.5-7b": -2, "llava-next": -2}.get(name, -1)
    pruning = prune(own.model, "cls_topk", 0.5)
    if name.startswith("qwen"):
        expected = qwen_look(own.model, inputs, blocks[layer])
    else:
        hook = getattr(blocks[layer], part).register_forward_hook(record)
        with torch.no_grad():
            own.model(**inputs)
        hook.remove()
        looks = weights[0].mean(dim=1)  # n s s
        expected = looks[:, 0, 1:] if name.startswith("llava") else looks.mean(dim=1)
        if name.startswith("medgemma"):
            expected = F.avg_pool2d(expected.view(-1, 1, 8, 8), 4).flatten(1)
        if name == "llava-next":
            source = pruning.layout._sources(tuple(inputs["image_sizes"][0].tolist()), inputs)
            expected = expected.flatten()[source[source >= 0]]
    with pruning, torch.no_grad():
        own.model(**inputs)
        scores = pruning.last.selection.scores
    torch.testing.assert_close(scores, expected.flatten(), rtol=1e-4, atol=1e-6)


def qwen_look(model, inputs, block):
    """Column means of the last layer of Qwen's tower, by its own eager attention, grouped and put in order."""
    import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as new  # noqa: PLC0415
    import transformers.models.qwen2_vl.modeling_qwen2_vl as old  # noqa: PLC0415

    module = new if "2_5" in type(model).__name__ else old
    eager, weights = module.eager_attention_forward, []

    def recording(*args, **kwargs):
        output, own = eager(*args, **kwargs)
        if args[0] is block.attn:
            weights.append(own)
        return output, own

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "eager_attention_forward", recording)
        model(**inputs)
    look = weights[0].mean(dim=(0, 1, 2))  # s
    by_token = look.view(-1, 4).mean(dim=1)
    if "2_5" in type(model).__name__:
        windows, _ = new.get_vision_window_index(
            inputs["image_grid_thw"],
            spatial_merge_size=2,
            window_size=model.config.vision_config.window_size,
            patch_size=14,
        )
        by_token = by_token[torch.argsort(torch.as_tensor(windows))]
    return by_token


def test_next_grid_puts_tokens_where_their_pixels_are(llava_next):
    """A bright square in one corner of an image: its tokens lie there in both planes."""
    grid = next_grid(llava_next, (112, 112))
    assert grid.planes == ((4, 4), (8, 8))
    assert len(grid) == 16 + 8 * 9
    assert (~grid.is_patch).nonzero().flatten().tolist() == [16 + 9 * row + 8 for row in range(8)]
    here = (grid.plane == 1) & (grid.tile == 2)
    assert grid.row[here].max() == 3
    assert grid.column[here].min() == 4
    margin = next_grid(llava_next, (60, 100))
    rows, columns = margin.planes[1]
    assert int((margin.plane == 1).sum()) == rows * columns


def test_newlines_are_dropped_before_patches_and_stay_at_the_whole_budget(llava_next):
    inputs = llava_next.inputs([0])
    grid_tokens = int((inputs["input_ids"] == llava_next.image_token).sum())
    with prune(llava_next.model, "uniform_grid", grid_tokens - 3) as handle, torch.no_grad():
        llava_next.model(**inputs)
    kept = handle.last.is_kept
    grid = handle.last.grids[0]
    assert handle.report().tokens_after == [grid_tokens - 3]
    assert kept[grid.is_patch].all()
    assert int(kept[~grid.is_patch].sum()) == int((~grid.is_patch).sum()) - 3


@pytest.mark.parametrize("method", BEFORE_LLM)
def test_every_method_reports_what_it_kept(llava_next, method):
    with prune(llava_next.model, method, 0.3, **PRUNING_SETTINGS.get(method, {})) as handle, torch.no_grad():
        llava_next.model(**llava_next.inputs([0, 1]))
    report = handle.report()
    assert [sum(int(plane.sum()) for plane in image) for image in report.kept] == report.tokens_after
    assert method in str(report)
