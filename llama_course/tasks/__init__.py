"""The paper's benchmark tasks, and what runs them.

A task is one file in `benchmarks/`, which registers it, and its own items beside it as JSON lines.
Files there are found by themselves: adding a task touches nothing else. `registry` says what a task
is, `rows` reads items, `runner` evaluates a model, `writing` lets it write, `scorers` judge texts,
and `lm_eval` hands our models to the harness of that name.
"""

from importlib import import_module
from pkgutil import iter_modules

from llama_course.tasks import benchmarks

for _found in iter_modules(benchmarks.__path__):
    import_module(f"{benchmarks.__name__}.{_found.name}")
