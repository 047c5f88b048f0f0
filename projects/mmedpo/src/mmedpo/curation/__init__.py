"""Preference pairs from questions and images of your own: `python -m mmedpo.curation`. Training does not import this.

Read `questions` (what is asked about which image), `contradict` (which answer is rejected), `masks` (where an image is
noised), `judges` (what a pair is worth), `plan` and `pipeline` (the stages in order), `written` (what is left in the
folder), `models` (the target model and the localiser; the only file with torch). Each stage is a pure function of an
item, kept by `lightbox.paper.stages`. What is written is preference JSON, as `lightbox data validate` reads it.
"""
