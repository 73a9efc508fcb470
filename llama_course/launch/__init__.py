"Training runs as processes: one or many, with signals, restarts and logs."
