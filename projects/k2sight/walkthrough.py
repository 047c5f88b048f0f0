# %% [markdown]
# # K2Sight: say what it looks like
#
# Nine steps from the paper's question to a measured difference, on one core in about a minute. Run it from the checkout
# with `uv run python projects/k2sight/walkthrough.py`; name a folder behind it to keep the figures. Every section ends
# with an assertion. Break each of them once on purpose: the comment beside it says how.
#
# All images here are synthetic. Nothing in this file is about a patient.

# %%
import atexit
import math
import sys
import tempfile
from pathlib import Path

from lightbox.claims.document import load as load_results
from lightbox.claims.spec import Role, Verdict
from lightbox.claims.statistics import Scores, contrast_effect
from lightbox.claims.verdicts import MIN_SEEDS, decide
from lightbox.paths import repo_root
from lightbox.report import figures
from lightbox.report.paper_map import read_map
from lightbox.runs import folders

FIGURES = Path(sys.argv[1]) if len(sys.argv) > 1 and not sys.argv[1].startswith("-") else None
WORK = tempfile.TemporaryDirectory()
CACHE = Path(WORK.name, "cache")
atexit.register(WORK.cleanup)

# %% [markdown]
# What papers share, then the project's own functions in the order in which the files are read. Nothing of the method is
# written again below.

# %%
from k2sight import evaluate, train
from k2sight.claims import PAPER
from k2sight.config import resolve
from k2sight.data import defined, load_splits
from k2sight.descriptions import define, phantom_classes
from k2sight.model import open_grounder
from k2sight.prompts import SIDE_PX, form_of, write_texts
from k2sight.scores import score, score_set
from lightbox.backbones.box_text import BoxReading
from lightbox.eval.boxes import LabelledBox, iou_matrix
from lightbox.paper.conditions import IMAGE
from lightbox.paper.overlay import Mark, draw_boxes
from lightbox.paper.pretrained import find_pretrained
from lightbox.records import Box

print("claims declared before the model was written:", ", ".join(claim.id for claim in PAPER.claims))

# %% [markdown]
# ## 1. The question the paper asks
#
# A model that finds things by name knows the names it was trained on. Names of findings are abstract: "infiltration"
# does not say what to look for. K2Sight puts a short description next to the name, made of attributes that can be seen:
# shape, density, location. Does a model then find a class that it has never met?

# %%
claim = PAPER.claim("K2")
print(claim.statement)
print("paper:", claim.paper_numbers)
print("least effect that counts:", claim.min_effect * claim.unit_scale, claim.unit)
for contrast in claim.contrasts:
    print(f"{contrast.role:<10}{contrast.name}")

# %% [markdown]
# Where the paper's rules stand in the code. A test resolves every name. The papers' text beyond their abstracts was not
# available, so items are named, not numbered.

# %%
PAPER_MAP = (
    ("name and definition in the place of the phrase", "k2sight.prompts.PHRASES"),
    ("a list of boxes as JSON, for Qwen2-VL", "k2sight.prompts.REQUEST"),
    ("a concept decomposed into shape, density, location", "k2sight.descriptions.Classes"),
    ("what a prompt says that a name means", "k2sight.descriptions.define"),
    ("one sample is an image and a class with all its boxes", "k2sight.data.targets_of"),
    ("q(x) = floor(n x), read back at the middle of its bin", "lightbox.backbones.codecs.FlorenceBins"),
    ("the vision tower stays as it is", "lightbox.paper.frozen_tower.open_frozen"),
    ("token cross-entropy of the boxes, pads left out", "lightbox.backbones.backbone.Backbone.loss"),
    ("mean best overlap with a true box, and boxes too many", "lightbox.eval.boxes.score_boxes"),
    ("AP over classes, 101 points, IoU .50 to .95", "lightbox.eval.detection.average_precision"),
    ("RoDeO", "lightbox.eval.boxes.rodeo"),
)

# %% [markdown]
# Each row is resolved by reading the source files, so a renamed function shows up here first.

# %%
anchors = read_map(repo_root(), "k2sight")
for anchor in anchors:
    print(f"{anchor.path.name:>16}:{anchor.line:<4} {anchor.item}")

lines = [anchor.path.read_text(encoding="utf-8").splitlines()[anchor.line - 1] for anchor in anchors]
assert all(a.name.split(".")[-1] in line for a, line in zip(anchors, lines, strict=True))  # break: misspell a name

# %% [markdown]
# ## 2. One example by eye
#
# The data are phantoms: a seed draws a scene, and pixels, boxes and attributes follow from it. A class is a triple of
# shape, density and location. Its name is a pseudo-word, drawn anew for each run seed, and each attribute is said in
# one of three synonyms. So neither name nor description can be known beforehand.

# %%
SIZES = ["preset=smoke", "run.seed=0", "data.n_train=320", "data.n_test=40", "optim.max_steps=40", "optim.lr=0.002"]
cfg = resolve([*SIZES, "experiment=defined", "eval.texts=[nearest]"])
training, test = load_splits(cfg)
asked = next(s for s in training.samples if s.record.neighbours)
print(asked.record.name, "means", asked.record.definition)
print("truth:", asked.record.attributes, [tuple(round(side, 2) for side in box) for box in asked.record.boxes])
for kind, other in asked.record.neighbours.items():
    print(f"beside it {other.name}, the same but for its {kind}:", other.attributes[kind])

# %% [markdown]
# The image, a character for every few pixels. With a folder given, the picture itself is saved with its true box dashed
# and its look-alikes framed.

# %%
pixels = training.images[asked.image]
for row in pixels[::4, ::2]:
    print("".join(" .:-=+*#%@"[int(grey) * 10 // 256] for grey in row))
if FIGURES:
    FIGURES.mkdir(parents=True, exist_ok=True)
    marks = [Mark("", box, is_true=True) for box in asked.record.boxes]
    marks += [Mark(kind, box) for kind, other in asked.record.neighbours.items() for box in other.boxes]
    draw_boxes(pixels, marks, scale=6).save(FIGURES / "example.png")

# %% [markdown]
# Every image holds such look-alikes. Without them whatever stands out would be the answer, and a model would not have
# to read. Some items ask for a class that is not there at all; then the right answer is nothing.

# %%
shares = {
    "absent": sum(not sample.record.present for sample in training.samples) / len(training.samples),
    "with a look-alike": sum(bool(sample.record.neighbours) for sample in training.samples) / len(training.samples),
}
for name, share in shares.items():
    print(f"{name:<18}{share:.2f}")

assert 0 < shares["absent"] < 0.5 < shares["with a look-alike"]  # break: add "data.distractors=0" to SIZES

# %% [markdown]
# ## 3. What goes into the model
#
# One table of templates serves every arm. What differs is what stands behind the task token. Each control keeps the
# form and takes something away: the meaning, its constancy, one attribute.

# %%
classes = phantom_classes(0)
for how in ("true", "scrambled", "random", "no_shape", "only_location", "nearest", "long"):
    print(f"{how:<14}{asked.record.name} means {define(classes, asked.record.name, how)}")

# %% [markdown]
# A box is four location tokens: x0, y0, x1, y1, each the number of a bin. The tiny model has as many bins as its image
# has pixels a side.

# %%
base = find_pretrained(cfg.model.backbone)
grounder = open_grounder(cfg, base, (training,), cache=CACHE)
backbone, tokenizer = grounder.learner.backbone, grounder.learner.tokenizer
form = form_of(backbone.family.name, tokenizer)
(prompt, target), *_ = write_texts(cfg, [asked], form)
print("reads ", prompt)
print("writes", target)
print("as tokens:", tokenizer.tokenize(target))

read_back = form.read(target, SIDE_PX, SIDE_PX).boxes
assert len(read_back) == len(asked.record.boxes)  # break: cut the last token off target
assert tokenizer.unk_token_id not in tokenizer(prompt)["input_ids"]  # break: put a snowman into prompt

# %% [markdown]
# ## 4. The tiny model and its parts
#
# A Florence-2: a tower, a projector, and a text model that reads image and prompt together and writes the answer. The
# class is the real one's; only sizes are small. The tower stays as it is, as in the paper, so its features are computed
# once an image.

# %%
parts = {"tower": backbone.part(backbone.family.vision), "projector": backbone.part(backbone.family.projector)}
parts["all"] = backbone.core
for name, part in parts.items():
    count = sum(p.numel() for p in part.parameters())
    learns = sum(p.numel() for p in part.parameters() if p.requires_grad)
    print(f"{name:<10}{count:>10,} parameters, {learns:>9,} of them learn")
seen = grounder.learner.see(training, [asked.image])
print("features of one image:", tuple(seen.shape), "tokens and channels")

assert not any(p.requires_grad for p in parts["tower"].parameters())  # break: open with model.freezes_tower=false

# %% [markdown]
# ## 5. The equation
#
# q(x) = floor(n x), at most n - 1, and back (q + 1/2) / n. What a model can never get right is what is lost here. By
# hand, for a box of a few pixels:

# %%
n_bins = form.codec.bins
true = Box(0.20, 0.30, 0.31, 0.45)
by_hand = Box(*((min(math.floor(n_bins * x), n_bins - 1) + 0.5) / n_bins for x in true))
by_code = form.codec.decode(form.codec.encode(true, SIDE_PX, SIDE_PX), SIDE_PX, SIDE_PX)[0]
print("by hand", tuple(round(x, 4) for x in by_hand))
print("by code", tuple(round(x, 4) for x in by_code))

assert all(math.isclose(a, b) for a, b in zip(by_hand, by_code, strict=True))  # break: round instead of floor

# %% [markdown]
# The far edge of the image has no bin of its own. The authors' code asks for one and gets a token that is unknown.

# %%
edge = form.codec.encode(Box(0.5, 0.5, 1.0, 1.0), SIDE_PX, SIDE_PX)
print(edge)

assert tokenizer.unk_token_id not in tokenizer(edge)["input_ids"]  # break: replace the last token by <loc_64>

# %% [markdown]
# ## 6. The equation as code, beside a reference
#
# What is scored is the overlap: intersection over union. The library's number beside the definition, in plain Python.

# %%
a, b = Box(0.1, 0.1, 0.5, 0.5), Box(0.3, 0.2, 0.7, 0.6)
shared = (min(a.x1, b.x1) - max(a.x0, b.x0)) * (min(a.y1, b.y1) - max(a.y0, b.y0))
reference = shared / (a.area + b.area - shared)
print(f"by the definition {reference:.6f}, by the library {iou_matrix([a], [b])[0, 0]:.6f}")

assert math.isclose(reference, iou_matrix([a], [b])[0, 0], rel_tol=1e-9)  # break: leave shared out of the union

# %% [markdown]
# ### Failure gallery: every box equally sure
#
# AP ranks boxes by confidence. The authors' evaluation gives every box the confidence one, so the order of the file is
# the ranking. Here are a hit and a false alarm of one class, once with a model's own confidences and once without. The
# test that catches it is `test_a_set_has_a_row_for_each_part_and_ranks_by_confidence`; the unparsable text has
# `test_an_unreadable_text_counts_as_wrong`.

# %%
there = next(s for s in training.samples if s.record.present and len(s.record.boxes) == 1)
gone = there.with_record(present=False, boxes=())
found_at = {}
for name, sureness in {"its own": (0.9, 0.2), "all one": (1.0, 1.0)}.items():
    pair = [
        BoxReading((LabelledBox("", box, sure),), is_parsed=True, n_broken=0)
        for box, sure in zip((there.record.boxes[0], Box(0.0, 0.0, 0.9, 0.9)), sureness, strict=True)
    ]
    orders = [score_set(s, IMAGE, r)[0]["map50"] for s, r in (([there, gone], pair), ([gone, there], pair[::-1]))]
    found_at[name] = orders
    print(f"{name:<8} mAP50 {orders[0]:.2f}; with the rows turned round {orders[1]:.2f}")

assert found_at["its own"][0] == found_at["its own"][1]  # break: give both boxes the confidence 0.9
assert found_at["all one"][0] != found_at["all one"][1]  # break: give them confidences of their own

# %% [markdown]
# ## 7. Overfit one batch
#
# The oldest check of a training loop: a model that cannot learn a few items by heart has a bug. `Learner.fit` is what
# every real run calls.

# %%
few = training.samples[:8]
once = resolve([*SIZES, "experiment=defined", "optim.max_steps=60", "optim.batch_size=8"])
pupil = open_grounder(once, base, (training,), cache=CACHE)
history = pupil.learner.fit(few, training, Path(WORK.name, "overfit"))
curve = history["train/loss"]
print("loss by step:", ", ".join(f"{step}: {loss:.2f}" for step, loss in curve))
if FIGURES:
    svg = figures.curves({"train/loss": {"ND, one batch": [curve]}})
    (FIGURES / "overfit.svg").write_text(svg, encoding="utf-8")

# %% [markdown]
# What does it draw now? Greedy decoding; a box's confidence is the mean log-probability of its four tokens, as a
# probability.

# %%
drawn = pupil.draw(few, training, [sample.image for sample in few])
for sample, reading in zip(few, drawn, strict=True):
    overlap = score(sample, IMAGE, reading)["paired_iou"]
    sure = ", ".join(f"{box.score:.2f}" for box in reading.boxes)
    said = "-" if overlap is None else f"{overlap:.2f}"
    print(sample.record.name, "boxes:", len(reading.boxes), "sure:", sure or "-", "overlap:", said)

assert curve[-1][1] < curve[0][1] / 3  # break: set optim.lr=0.00001 for this run

# %% [markdown]
# ## 8. What changes when the idea is switched off
#
# The idea is what the definition says. Switch it off: the name alone, or a definition drawn at random for each item.
# The ablation is the three lines at the end of the next cell. At this size nothing is decided by it.


# %%
def scored(arm):
    """Train one arm for a few steps and return its table of per-item scores."""
    texts = ["eval.texts=[nearest,only_location]"] if arm == "defined" else []
    arm_cfg, folder = resolve([*SIZES, f"experiment={arm}", *texts]), Path(WORK.name, arm)
    train.run(arm_cfg, base, folder, cache=CACHE, needs={}, keeps_model=False)
    return folders.read_scores(folder)


tables = {arm: scored(arm) for arm in ("name", "defined", "random")}
for arm, table in tables.items():
    print(f"{arm:<9}mean overlap {folders.mean_scores(table)['image/paired_iou']:.3f}")

# %% [markdown]
# Compare with what needs no name or no image. A location prior knows where such findings usually lie; the largest blob
# takes what stands out.

# %%
for method in ("location_prior", "blob", "oracle"):
    values = [row["paired_iou"] for row in evaluate.guess_rows(test, evaluate.guesses(training, test, method))]
    values = [value for value in values if value is not None]
    print(f"{method:<15}mean overlap {sum(values) / len(values):.3f}")

# %% [markdown]
# What makes a difference readable at all: the arms of a seed share images, classes, boxes and initial weights. Only the
# words differ.

# %%
named, _ = load_splits(resolve([*SIZES, "experiment=name"]))
swapped = defined(training.samples, classes, "random")
print("the first item's definition, and in the control:", training.samples[0].record.definition, "|", end=" ")
print(swapped[0].record.definition)

assert named.digest() == training.digest()  # break: add "run.seed=1" for the arm `name`
same = [s.with_record(definition=t.record.definition) for s, t in zip(swapped, training.samples, strict=True)]
assert same == training.samples  # break: also change a box

# %% [markdown]
# ## 9. What the paper reports, what we measured, what differs
#
# Published runs stand in the README and in `results/`. They are read here, never typed.

# %%
print("paper:", claim.paper_numbers)
place = repo_root() / "results" / "k2sight" / "quick" / "results.json"
for entry in load_results(place).claims if place.is_file() else ():
    low, high = entry.ci95 or ("-", "-")
    print(f"{entry.id}: {entry.effect} {entry.unit}, {low} to {high}: {entry.verdict}")
if not place.is_file():
    print("ours: not run yet")

# %% [markdown]
# And this run? The real rules, applied to the little arms above.

# %%
results = Scores({(arm, 0): table for arm, table in tables.items()}, PAPER.headline, PAPER.condition)
decisive = [c for c in claim.contrasts if c.role is Role.PRIMARY and {c.arm, c.rival} <= tables.keys()]
effects = [contrast_effect(c, results, seeds=[0], min_effect=claim.min_effect) for c in decisive]
for effect in effects:
    print(f"{effect.name}: {100 * effect.effect:+.1f} points of IoU on one seed, interval {effect.ci95}")
decision = decide(claim, effects, None, planned_seeds=1, preset="quick")
print(f"verdict: {decision.verdict} ({decision.reason})")

assert decision.verdict is Verdict.NONE  # break: see `claims.verdicts`; nothing short of more seeds will do
assert claim.seeds["quick"] >= MIN_SEEDS  # break: lower the seeds of K2 in claims.py

# %% [markdown]
# **What differs.** Our definitions are true by construction and in a fixed form; the paper's are sentences that a model
# wrote and people chose. Our names are pseudo-words of one token; real names are made of pieces that a checkpoint has
# read before. The tiny model was pretrained to find what a phrase of attributes describes, in other words than those
# used here.
#
# **What a score does not mean.** An overlap here is about drawings. It says nothing about patients, and a box that lies
# well is no finding.
