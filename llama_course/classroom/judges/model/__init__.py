"What the judge knows of the exercises in `exercises/12_model.ipynb`, each in its file."

TASKS = ("llama_logits", "chunked_loss", "find_faults")
