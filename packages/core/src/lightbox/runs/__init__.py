"""One run folder and its only owner: `folders` knows each file of it, who writes it and when.

`sources` finds the code that decides a run's numbers, `index` shows finished folders in MLflow (`index_entry`: what it
says of a run, `index_place`: where it lives). Nothing here imports torch.
"""
