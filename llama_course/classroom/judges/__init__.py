"What the judge knows of each exercise, a file a chapter. Spoilers."
