"What the judge knows of the exercises in `exercises/29_instruct.ipynb`, each in its file."

TASKS = ("lora_map", "batched_lora", "packed_attention", "loss_on_answers")
