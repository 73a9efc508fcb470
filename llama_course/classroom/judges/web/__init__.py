"What the judge knows of the exercises in `exercises/04_web.ipynb`, each in its file."

TASKS = ("bigram_perplexity", "add_keys", "clean_page")
