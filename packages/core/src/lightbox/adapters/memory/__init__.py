"""The memory model: a training step on sizes, from a config.json alone. No torch.

`shapes` reads sizes, `tape` to `step` are the operations, `decoders`, `towers`, `davit` and `models` the models,
`images` says what an image costs, `prediction` answers a `request`, `advice` says what to change, `named` knows
published models.
"""
