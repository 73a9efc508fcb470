"What the judge knows of the exercises in `exercises/07_bpe.ipynb`, each in its file."

TASKS = ("learn_merges", "fast_merges", "write_fields")
