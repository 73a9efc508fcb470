"`python -m llama_course.launch` pretrains; torchrun starts it on many processes."

from llama_course.launch.pretrain import main

if __name__ == "__main__":
    main()
