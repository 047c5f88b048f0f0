"""MedThink (arXiv 2404.12372): medical VQA that answers and says why, from a small seq2seq model.

Read `claims` (what is tested), `config`, `data` (the idea: rationale targets through one template table), `model`
(vision fused once after the T5 encoder), `objective`, `train`, `evaluate`; then `rationales` (controls), `stages`
(Two-Stage) and `predict`. What papers share is in `lightbox.paper`. Nothing heavy is imported here.
"""
