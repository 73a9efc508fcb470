"What the judge knows of the exercises in `exercises/16_collectives.ipynb`, each in its file."

TASKS = ("reduce_scatter", "doubling_all_reduce", "equal_sums")
