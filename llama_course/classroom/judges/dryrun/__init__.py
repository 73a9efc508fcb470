"What the judge knows of the exercises in `exercises/20_dryrun.ipynb`, each in its file."

TASKS = ("fullest_moment", "counts_at_depth", "bytes_alive")
