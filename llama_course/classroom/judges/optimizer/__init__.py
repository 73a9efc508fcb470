"What the judge knows of the exercises in `exercises/14_optimizer.ipynb`, each in its file."

TASKS = ("adamw_step", "clip_gradients", "train_step", "learning_rate")
