"Rebuild the LLaMA paper: a course in notebooks that is also the library. `llama_course.load(path)`"

from importlib import import_module

__version__ = "0.2.0"

# Where the names are that `import llama_course` offers; each is imported when it is first used.
_PLACES = {
    "Llama": "model",
    "LlamaConfig": "model",
    "Tokenizer": "tokenizer",
    "train": "training",
    "generate": "generation",
    "load": "files.load",
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module 'llama_course' has no attribute {name!r}")
    return getattr(import_module(f"llama_course.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
