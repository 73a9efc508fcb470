"What the judge knows of the exercises in `exercises/13_checkpointing.ipynb`, each in its file."

TASKS = ("lean_swiglu", "kept_bytes", "within_budget", "frugal_stack")
