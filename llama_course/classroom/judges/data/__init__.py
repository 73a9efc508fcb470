"What the judge knows of the exercises in `exercises/03_data.ipynb`, each in its file."

TASKS = ("unseen_paragraphs", "capped_shares", "rank_rows")
