"What the judge knows of the exercises in `exercises/18_fault_tolerance.ipynb`, each in its file."

TASKS = ("newest_whole", "pieces_to_read", "save_checkpoint")
