"`python -m llama_course` is the command `llama-course`."

from llama_course.command.cli import main

if __name__ == "__main__":
    main()
