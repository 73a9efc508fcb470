"What the judge knows of the exercises in `exercises/21_generation.ipynb`, each in its file."

TASKS = ("nucleus", "stream_bytes", "decode_rate", "ragged_step")
