"What a task that says *rebuild* refuses: the library's own function, optimizer or model."

from collections.abc import Callable
from typing import Any

from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode


class LibraryShortcut(Exception):
    "The answer calls what it was to build."


class _Refusing(TorchFunctionMode):
    "Within it a function of PyTorch with one of the names raises `LibraryShortcut`."

    def __init__(self, names: frozenset[str]):
        super().__init__()
        self.names = names

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").removeprefix("special_").strip("_")
        if name in self.names:
            raise LibraryShortcut(f"`{name}` is the library's own: here you build it yourself")
        return func(*args, **(kwargs or {}))


def _no_optimizer(optimizer: Any, *_: Any) -> None:
    name = type(optimizer).__name__
    raise LibraryShortcut(f"`{name}` is the library's own: here you build it yourself")


def _no_model(module: Any, *_: Any) -> None:
    if type(module).__module__.partition(".")[0] in ("llama_course", "transformers"):
        _no_optimizer(module)


def refusing(
    *names: str,  # of functions of PyTorch, such as "rms_norm"
) -> Callable:  # for `Exercise(call=...)`
    """How an answer is called that must do without these functions, without PyTorch's optimizers
    and without finished models. Code that the judge calls itself is not concerned."""

    refused = frozenset(names)

    def call(answer: Callable, *args: Any) -> Any:
        hooks = (
            register_optimizer_step_pre_hook(_no_optimizer),
            register_module_forward_pre_hook(_no_model),
        )
        try:
            with _Refusing(refused):
                return answer(*args)
        finally:
            for hook in hooks:
                hook.remove()

    return call
