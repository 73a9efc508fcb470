"`python -m llama_course.launch` pretrains; torchrun starts it on many processes."

from llama_course.launch.pretrain import launch_command

if __name__ == "__main__":
    launch_command()
