"The benchmark tasks: a file for each, or for a family that is read alike, with items of our own."
