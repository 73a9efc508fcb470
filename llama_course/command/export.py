"The command export."

from llama_course.command.output import Json, print_result
from llama_course.files.export import Export, export, in_words


def export_command(how: Export, as_json: Json = False) -> None:
    "Write a model for other programs: transformers, vLLM, llama.cpp, ollama, peft."
    result = export(how)
    print_result(result, as_json, in_words(result))
