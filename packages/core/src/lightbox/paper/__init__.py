"""The kit that every paper shares; a paper's folder holds its ideas only.

Without torch: `schema` (configuration, arms as experiments, inputs and cost), `entries` (train, eval, predict, run_job
from one factory), `multirun`, `samples` (records with the row of their image), `conditions` (image, blank, shuffled),
`baselines` (what can be had without looking), `pretrained` (what a name of weights stands for), `forecast` (will a step
fit the card), `examples` (what the page shows). With torch: `features` (of a frozen tower, cached), `learner` (any
backbone as something that trains, writes and is saved).
"""
