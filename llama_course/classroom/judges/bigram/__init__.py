"What the judge knows of the exercises in `exercises/01_bigram.ipynb`, each in its file."

TASKS = ("cross_entropy", "draw_tokens", "bits_per_byte")
