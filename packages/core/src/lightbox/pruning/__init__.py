"""Fewer visual tokens under an exact budget, for any vision-language model of transformers: `pipeline.prune`.

In reading order: `types` (where tokens lie, what a method reads and keeps), `budgets`, `positions`; `layouts` and
`scores` say what each family's tower gives, `records` keeps it beside the features, `selecting` lets a method of
`methods` choose, `prompt` shortens what the language model reads, and `pipeline` puts it together, for `models` that
can be pruned. `options` is what may be asked, `regions` finds lesions in a map, `inside` holds the methods between
layers, `measure` the report. `preview` shows what budgets would keep, and `packages/core/pruning` teaches all of it.
"""
