"What the judge knows of the exercises in `exercises/17_parallel.ipynb`, each in its file."

TASKS = ("sharded_step", "parallel_swiglu", "clip_shards")
