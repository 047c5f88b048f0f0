"""MedPLIB (arXiv 2412.09278): answers, regions as prompts and masks from one model, by a staged mixture of experts.

Read `experts` (the idea: feed-forward networks of models that were trained apart become experts of one model) and
`assembly` (how they are put together, saved and loaded), `routing` (which token goes where: forced, balanced, counted),
`mixtral` (the fused layout), `frames` (where an image lies in what an encoder sees), `regions` (points, boxes,
scribbles, polygons and masks as prompts), `pixel_vlm` (which state speaks for a mask). Losses and metrics of masks are
`lightbox.losses.masks`, `lightbox.eval.masks` and `lightbox.eval.mask_boundaries`. Nothing heavy is imported here.
"""
