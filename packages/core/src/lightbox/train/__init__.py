"""Training, as parts: `driver` (the loop), `batches` (what comes when), `checkpoint` (what survives a kill).

Smaller parts: `schedule`, `groups`, `seeds`, `signals`, `nonfinite`, `weights` (model tensors and files), `files`
(durable writing). A paper hands the driver its own `step(model, batch)`; what happens in it is read in that paper.
"""
