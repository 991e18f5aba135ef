"""How to learn from the rows: mixture, curriculum, packing, objective, the trainer, checkpoints, export."""
