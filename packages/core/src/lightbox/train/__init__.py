"""Training: `driver.fit` is the loop, on one page; a paper hands it its own `step(model, batch)`.

What the loop stands on: `training` (what one training is made of, and where it continues), `batches` (what comes when),
`feed` (who makes tensors of it), `updates` (which weights decay, rates, the optimiser's state), `checkpoint` and
`weights` (what survives a kill), `shortage` (memory that runs out), `watch` (what must hold), `processes` (several that
train one model), `precision`, `seeds`, `signals`, `card`.
"""
