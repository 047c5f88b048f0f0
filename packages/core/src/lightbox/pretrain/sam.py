"""Build the tiny `sam`: a SAM of 64 px that cuts out what a box or a point means, in every modality that may train.

MedPLIB makes a language model's state a prompt of a segmenter that was pretrained on prompts, and then trains its
decoder only. So encoder and prompt encoder must be good before: that is what is done here, without a word of text.
"""

from dataclasses import replace
from pathlib import Path

from torch import nn
from transformers import SamConfig, SamImageProcessor, SamModel, SamProcessor

from lightbox.backbones.segmenter import load_segmenter
from lightbox.config import OptimConfig, RunConfig
from lightbox.pretrain.modality_pictures import IMAGE_PX, MUST_NOT_SEE, PICTURES_VERSION, SAW
from lightbox.pretrain.sam_rows import POINT_SHARE, PROMPTS, SEED, VISITS, MaskSet, PromptRows, mask_set, prompt_loss
from lightbox.pretrain.sam_scores import score_sam
from lightbox.train.batches import BatchSource
from lightbox.train.driver import fit
from lightbox.train.seeds import seed_everything

THREADS = 2
CASES, VALIDATION_CASES = 9_000, 600
WIDTH, LAYERS, HEADS, PATCH_PX = 64, 3, 4, 4
OPTIM = OptimConfig(lr=1e-3, max_steps=3000, batch_size=16, warmup_frac=0.05)


def make_sam() -> SamModel:
    """The segmenter that is shipped, with random weights; what it is never asked for is frozen."""
    model = SamModel(
        SamConfig(
            vision_config={
                "hidden_size": WIDTH,
                "output_channels": WIDTH,
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
                "image_size": IMAGE_PX,
                "patch_size": PATCH_PX,
                "mlp_ratio": 2.0,
                "global_attn_indexes": list(range(LAYERS)),  # 256 patches see each other; windows are for 4,096
                "num_pos_feats": WIDTH // 2,
                "initializer_range": 0.02,
                "scale": 1.0,  # of the frequencies of places; that of a width of 768 tells neighbours apart and no more
            },
            prompt_encoder_config={"hidden_size": WIDTH, "image_size": IMAGE_PX, "patch_size": PATCH_PX},
            mask_decoder_config={
                "hidden_size": WIDTH,
                "mlp_dim": 2 * WIDTH,
                "num_attention_heads": HEADS,
                "iou_head_hidden_dim": WIDTH,
            },
        )
    )
    for name, parameter in model.named_parameters():
        if name.endswith("positional_embedding"):  # random frequencies, which only transformers holds as a parameter
            parameter.requires_grad_(False)
        elif name == "vision_encoder.pos_embed":
            nn.init.normal_(parameter, std=0.1)
        elif parameter.ndim > 1 and "rel_pos" not in name:
            # transformers begins an encoder at 1e-10, to be loaded over, and a decoder at 0.02, for widths of hundreds
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    model.prompt_encoder.mask_embed.requires_grad_(False)  # no coarse masks as prompts
    model.prompt_encoder.point_embed[0].requires_grad_(False)  # and no points outside of what is meant
    model.mask_decoder.output_hypernetworks_mlps[1:].requires_grad_(False)  # and one mask a prompt
    return model


def make_processor() -> SamProcessor:
    """Images at the top left of a square of 64 px."""
    images = SamImageProcessor(
        size={"longest_edge": IMAGE_PX},
        pad_size={"height": IMAGE_PX, "width": IMAGE_PX},
        mask_size={"longest_edge": IMAGE_PX},
        mask_pad_size={"height": IMAGE_PX, "width": IMAGE_PX},
    )
    return SamProcessor(images)


def build_sam(folder: Path, work: Path, *, max_steps: int | None = None) -> dict:
    """Train and write the model and its processor.

    Args:
        folder: receives config.json, model.safetensors, files of the processor.
        work: receives checkpoints and history; a killed build continues from there.
        max_steps: fewer steps, for tests.

    Returns:
        Facts for the model card.
    """
    n_train, n_held_back = (CASES, VALIDATION_CASES) if max_steps is None else (60, 15)
    train, held_back = mask_set("pretrain", n_train), mask_set("pretrain_validation", n_held_back)
    seed_everything(SEED, THREADS)
    model = make_sam()
    steps = train_sam(model, train, work, max_steps=max_steps)
    model.eval().save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return {
        "recipe": {
            "steps": steps,
            "batch_size": OPTIM.batch_size,
            "prompts_per_picture": PROMPTS,
            "point_share": POINT_SHARE,
            "lr": OPTIM.lr,
            "cases": CASES,
            "visits": VISITS,
            "seed": SEED,
        },
        "pictures": PICTURES_VERSION,
        "parameters": sum(p.numel() for p in model.parameters()),
        "scores": score_sam(load_segmenter(str(folder)), held_back),
        "saw": f"{SAW}: the mask of an object for its box, moved a little, or a point in it; one mask a prompt",
        "must_not_see": f"{MUST_NOT_SEE}; coarse masks as prompts and three masks a prompt are untrained",
    }


def train_sam(model: SamModel, train: MaskSet, work: Path, *, max_steps: int | None) -> int:
    """Train a segmenter in place; gives the number of steps."""
    optim = replace(OPTIM, max_steps=max_steps or OPTIM.max_steps)
    rows = PromptRows(train)
    source = BatchSource(n_items=len(rows), collate=rows.collate, batch_size=optim.batch_size, seed=SEED)
    run = RunConfig(seed=SEED, threads=THREADS, save_every_steps=250, log_every_steps=25)
    fit(model, prompt_loss, source, optim=optim, run=run, out=work)
    return optim.max_steps
