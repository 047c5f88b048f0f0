"""The memory model: the peak of a training step in closed form, from a config.json alone. No torch.

`request` says what is trained, `layers` what each kind of layer keeps, `prediction` adds up a step. What it is checked
by, `lightbox.bench.memory_trace`, runs the real model's step without memory.
"""
