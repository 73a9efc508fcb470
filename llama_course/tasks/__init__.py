"The benchmark tasks of the paper: a file for each, and the adapter to lm-eval."
