"""K2Sight (arXiv 2508.04572), with AG-KD (2503.03278): say what a finding looks like, and a compact model finds it.

Read `claims` (what is tested), `config`, `data` (who is asked what, on the phantom and on real sets), `descriptions`
(the idea: a name and what it means), `prompts` (the template table), `train`, `evaluate`, `scores`, `predict`. What
papers share is in `lightbox.paper`. Nothing heavy is imported here.
"""
