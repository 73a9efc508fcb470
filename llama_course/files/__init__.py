"Files that models and runs are kept in: the run folder, and readers and writers of others' formats."
