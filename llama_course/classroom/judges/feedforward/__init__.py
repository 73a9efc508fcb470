"What the judge knows of the exercises in `exercises/09_feedforward.ipynb`, each in its file."

TASKS = ("swiglu", "chunked_swiglu", "fused_feed_forward")
