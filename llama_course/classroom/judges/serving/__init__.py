"What the judge knows of the exercises in `exercises/22_serving.ipynb`, each in its file."

TASKS = ("roofline_step", "continuous_steps", "serve_rows")
