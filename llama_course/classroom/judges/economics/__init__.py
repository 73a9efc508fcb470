"What the judge knows of the exercises in `exercises/02_economics.ipynb`, each in its file."

TASKS = ("compute_optimal", "cheapest_life", "break_even_tokens", "fit_loss_law", "which_to_serve")
