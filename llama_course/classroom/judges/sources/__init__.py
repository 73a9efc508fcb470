"What the judge knows of the exercises in `exercises/05_sources.ipynb`, each in its file."

TASKS = ("minhash_signature", "candidate_pairs", "strip_comments")
