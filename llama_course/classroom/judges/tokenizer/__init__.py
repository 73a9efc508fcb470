"What the judge knows of the exercises in `exercises/06_tokenizer.ipynb`, each in its file."

TASKS = ("merge_pieces", "linear_merge", "decode_bytes", "encode_text")
