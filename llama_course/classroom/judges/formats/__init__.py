"What the judge knows of the exercises in `exercises/23_formats.ipynb`, each in its file."

TASKS = ("merge_shards", "unpermute", "read_tensor", "read_gguf")
