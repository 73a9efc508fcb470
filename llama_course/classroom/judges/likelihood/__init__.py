"What the judge knows of the exercises in `exercises/25_likelihood.ipynb`, each in its file."

TASKS = ("score_per_character", "attend_shared", "option_scores")
