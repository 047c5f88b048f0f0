"""Pretrained parts by name; tiny and real checkpoints share one path.

`weights` finds folders and digests without torch; `towers` gives frozen image features; `seq2seq` gives T5 models. A
name is "tiny/<folder>" (shared_data/weights), a directory, or a hub id with a full revision. Safetensors only, no
remote code.
"""
