"What everything else leans on: errors of one line, files that are whole, optional packages, isolation, counting."
