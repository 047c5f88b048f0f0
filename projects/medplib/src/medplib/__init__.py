"""MedPLIB (arXiv 2412.09278): answers, regions as prompts and masks from one model, by a staged mixture of experts.

Read `claims` (what is tested), `config`, `data` (who learns from what), `experts` (the idea: networks of models that
were trained apart become experts of one) and `assembly`, `routing`, `stages` (what each may change), `objective`,
`model` (what an arm begins with), `train`, `evaluate`, `scores`, `cost`, `predict`, `artifact`, `mixtral` (the fused
layout). What papers share is in `lightbox.paper`, language model and segmenter in its `pixel_vlm`. Nothing heavy is
imported here.
"""
