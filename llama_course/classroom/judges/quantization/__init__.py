"What the judge knows of the exercises in `exercises/24_quantization.ipynb`, each in its file."

TASKS = ("quantize_groups", "int4_product", "clipped_groups", "tokens_per_second")
