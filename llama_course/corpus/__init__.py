"From raw files to token shards at any scale: the recipe, readers of raw formats, executors."
