"""Pretrained parts by name; tiny and real checkpoints share one path.

A name is "tiny/<folder>" (shared_data/weights), a directory, or a hub id with a full revision. Safetensors only, no
remote code. In reading order: `weights` finds folders and digests, `families` knows names of parts and `preflight`
refuses what cannot work, all without torch; `loading.load` gives a `backbone.Backbone`, the same for every family.

`conversation` holds turns and images, `reading` makes `rows` of them and a batch, `backbone` says what a model makes of
it (loss, log-probabilities, features by `vision`, answers by `generation`), and a family's own file (`llava`,
`qwen_vl`, `gemma3`, `florence2`, `t5`) says what differs. `attention` and `quantisation` choose how it computes and is
stored, `codecs` write boxes as text. `towers` gives frozen image features, `segmenter` masks, `seq2seq` plain T5s.
`convert_llava` turns the layout of LLaVA's authors into transformers' own.
"""
