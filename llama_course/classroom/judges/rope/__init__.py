"What the judge knows of the exercises in `exercises/10_rope.ipynb`, each in its file."

TASKS = ("rope", "shift_keys", "decode_step")
