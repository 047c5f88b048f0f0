"""The memory model: a training step on sizes, from a config.json alone. No torch.

`shapes` reads sizes, `tape` and `step` are the operations, `decoders`, `towers` and `models` write the models down,
`images` says what an image costs, `prediction` answers how much and how many, `advice` what to change, `named` knows
published models.
"""
