"""MedThink (arXiv 2404.12372): medical VQA that answers and says why, from a small seq2seq model.

Read `claims` (what is tested), `config`, `data` (the idea: rationale targets through one template table), `model`
(vision fused once after the T5 encoder), `objective`, `train` and `t5`, `evaluate`; then `rationales`, `stages`,
`reader`, `baselines` and `predict`. Other models than the paper's: `vlm`, `bases`, `checks`, `room`, `saved`. Nothing
heavy is imported here.
"""
