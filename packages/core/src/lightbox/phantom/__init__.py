"""The procedural imaging world: scene -> pixels, masks, boxes, facts, questions, rationales, reports.

Read `ontology` (what can be seen), `splits` (who may see it), `scene` (what is where), `chest` (pixels), `facts`
(what is true), `questions` (what is asked), `reports` (what is dictated). A new modality is one file beside `chest`.
Facts, boxes, masks, text and pixels come from integer draws and integer arithmetic, so they are the same everywhere.
"""

from lightbox.phantom.knobs import Knobs
from lightbox.phantom.splits import seed_range
from lightbox.phantom.version import VERSION, generator_digest
from lightbox.phantom.world import draw_cases

__all__ = ["VERSION", "Knobs", "draw_cases", "generator_digest", "seed_range"]
