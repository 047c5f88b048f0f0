"""Metrics, thin over well-kept libraries: per-item scores first, reduction second.

`answers`, `text` and `facts` score one item; `intervals` puts bounds on means over seeds.
"""
