"""Times of the operators in `lightbox.kernels` against what else could be run in their place.

In reading order: `shapes` (the models' sizes), `peers` (the published form and a good one in PyTorch), `operators` (the
table: what each is given, and the least it must read, write and compute), `measure` (`run`: first the tests, then the
times).
"""
