"""Training, as parts: `driver` (the loop), `batches` (what comes when), `checkpoint` (what survives a kill).

The loop's own parts: `parts` (device, optimiser, resume), `gradient` and `accumulation` (one step's gradient),
`shortage` (memory that runs out), `watch` (what must hold), `processes` and `sharding` (several processes). Smaller:
`schedule`, `groups`, `seeds`, `signals`, `nonfinite`, `weights` (model tensors and files), `optimizer_state`, `card`,
`files` (durable writing). A paper hands the driver its own `step(model, batch)`; what happens in it is read there.
"""
