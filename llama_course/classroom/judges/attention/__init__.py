"What the judge knows of the exercises in `exercises/11_attention.ipynb`, each in its file."

TASKS = ("softmax_backward", "merge_attention", "tiled_attention", "lean_attention")
