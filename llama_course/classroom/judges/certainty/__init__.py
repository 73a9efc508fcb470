"What the judge knows of the exercises in `exercises/27_certainty.ipynb`, each in its file."

TASKS = ("wilson_interval", "clustered_error", "paired_p_value")
