"What the judge knows of the exercises in `exercises/26_answers.ipynb`, each in its file."

TASKS = ("normalize", "weighted_vote", "stated_number", "pass_at_k")
