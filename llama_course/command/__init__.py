"The command `llama-course`."
