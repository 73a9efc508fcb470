"What everything else leans on: errors, whole files, options, optional packages, isolation."
