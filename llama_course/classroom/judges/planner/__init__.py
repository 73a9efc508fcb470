"What the judge knows of the exercises in `exercises/19_planner.ipynb`, each in its file."

TASKS = ("memory_gib", "smallest_cluster", "step_mfu", "loss_pieces", "carbon_bill")
