"What the judge knows of the exercises in `exercises/08_norm.ipynb`, each in its file."

TASKS = ("rms_norm", "lean_rms_norm", "pre_norm_block")
