"""The study: what each reward and each way of making batches does to captions, over several seeds.

`python -m tellapart_training.study run` trains scorers, rows and seeds (hours), `measure` captions and scores
every run that is there, `report` prints tables and draws the plot from the saved figures (`make study`).
"""
