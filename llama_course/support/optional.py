"Packages that not everybody needs: imported where they are used, named with their extra."

from importlib import import_module
from types import ModuleType

from llama_course.support.errors import UserError


def need(
    package: str,  # the module to import, such as "datasets" or "starlette.responses"
    extra: str,  # the extra of llama_course that installs it
) -> ModuleType:
    "The imported package. Raises `UserError` that names the extra if it is not installed."
    try:
        return import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        raise UserError(
            f"the package {name} is missing: pip install 'llama_course[{extra}]'."
        ) from None
