"The report of a run: a template and its data."
