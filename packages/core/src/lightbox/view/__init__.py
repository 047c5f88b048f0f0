"""The page of `lightbox view`: one image, one question, and what two trained models make of it, side by side.

It is a thin page over what `lightbox predict` calls. `uploads` turns bytes into pixels, `regions` what was drawn into a
prompt, `checkpoints` lists trainings and holds at most two models, `answers` writes HTML, `viewer` puts these together,
`page` is made of them with gradio, and `server` serves it on this machine alone, behind the guard of `loopback`. Only
`page` and `server` import gradio; torch is imported when the first model is opened.
"""
