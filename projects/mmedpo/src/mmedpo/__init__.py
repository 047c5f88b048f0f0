"""MMedPO (arXiv 2412.06141): prefer the true answer, and the image that shows the lesion, the more the pair matters.

Read `claims` (what is tested), `config`, `data` (who is asked what), `curate` (the idea: what a pair is), `noise` (how
a lesion is destroyed), `relevance` (what a pair weighs), `objective`, `train`, `evaluate`, `scores`, `predict`.
What papers share is in `lightbox.paper`, the learner of pairs in its `pair_learner`. Nothing heavy is imported here.
"""
