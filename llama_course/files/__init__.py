"Files of models and runs: the run folder, readers and writers of others' formats."
