"What the judge knows of the exercises in `exercises/28_bias.ipynb`, each in its file."

TASKS = ("stereotype_share", "ragged_perplexity", "gotcha_accuracy", "expected_maximum")
