"""What visual-token pruning keeps, and what is left of boxes and answers: `lightbox reproduce core`.

Nothing is trained. Arms are policies of `lightbox.pruning`, all on the shipped `tiny/llava-576` and the same images.
"""
