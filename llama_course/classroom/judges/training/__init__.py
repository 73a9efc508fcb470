"What the judge knows of the exercises in `exercises/15_training.ipynb`, each in its file."

TASKS = ("train_steps", "accumulate_gradients", "held_out_bits")
