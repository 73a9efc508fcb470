"What is different between two tables of settings, in words."

from typing import Any


def differences(old: Any, new: Any, where: str = "") -> str:
    "In words, where two settings differ; empty if nowhere."
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [key for key in old | new if old.get(key) != new.get(key)]
        return ", ".join(differences(old.get(k), new.get(k), f"{where}{k} ") for k in keys)
    return "" if old == new else f"{where}was {old}, is {new}"
