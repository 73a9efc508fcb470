"The one door through which everything comes that an answer returns: plain data, or a name for it."

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

MOST_PARTS = 100_000  # of lists, tuples and dicts together
MOST_ELEMENTS = 1 << 26  # of all tensors together
MOST_BITS = 4096  # of an integer
DEPTH = 40
TAKEN_DTYPES = {
    torch.float64, torch.float32, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
}  # fmt: skip


class TooMuch(Exception):
    "A value of more than `MOST_PARTS` parts."


class Unknown:
    "The kind of all that is no plain data: the name of its class says what came."


def unknown(
    name: str,  # as it is to be told: "NumPy array (3,) float64"
) -> Any:
    "A stand-in for a value that the judge does not take."
    return type(name, (Unknown,), {})()


def taken(
    value: Any,  # whatever an answer returned
) -> Any:
    """The value as plain data: strided tensors on the CPU, None, bool, int, float, str, bytes, and
    tuples, lists and dicts of these.

    NumPy's numbers become Python's. Everything else becomes a stand-in whose class tells its name;
    none of the value's own methods is called on the way.
    """
    left = [MOST_PARTS, MOST_ELEMENTS]
    try:
        return _taken(value, left, DEPTH)
    except TooMuch:
        return unknown(f"{type(value).__name__} of more than {MOST_PARTS:,} parts")
    except Exception:  # of whatever kind: these classes are somebody else's
        return unknown("value that cannot be read")


def _taken(value: Any, left: list[int], depth: int) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise TooMuch
    kind = type(value)
    if value is None or kind is bool or kind is float or kind is bytes:
        return value
    if issubclass(kind, Tensor):
        return _tensor(value, left)
    if kind.__module__ == "numpy":
        return _from_numpy(value)
    if issubclass(kind, int):
        value = int.__add__(value, 0)
        bits = value.bit_length()
        return value if bits <= MOST_BITS else unknown(f"whole number of {bits:,} bits")
    if issubclass(kind, float):
        return float.__add__(value, 0.0)
    if issubclass(kind, str):
        return str.__add__("", str.__getitem__(value, slice(None)))
    if issubclass(kind, bytes):
        return bytes.__add__(b"", bytes.__getitem__(value, slice(None)))
    if issubclass(kind, (list, tuple, dict)) and depth == 0:
        return unknown(f"{kind.__name__} that is nested too deeply")
    if issubclass(kind, list):
        return [_taken(part, left, depth - 1) for part in list.__iter__(value)]
    if issubclass(kind, tuple):
        return tuple(_taken(part, left, depth - 1) for part in tuple.__iter__(value))
    if issubclass(kind, dict):
        pairs = [
            (_taken(key, left, depth - 1), _taken(part, left, depth - 1))
            for key, part in dict.items(value)
        ]
        with contextlib.suppress(TypeError):
            if not any(isinstance(key, (Tensor, Unknown)) for key, _ in pairs):
                return dict(pairs)
        return unknown("dict whose keys are neither numbers nor texts")
    return unknown(kind.__name__)


def _tensor(value: Tensor, left: list[int]) -> Any:
    "A plain tensor, still attached to its graph; or what it is instead."
    from_torch = is_traceable_wrapper_subclass(value)
    if from_torch or value.is_nested or value.is_quantized:
        return unknown(type(value).__name__ if from_torch else "nested or quantized tensor")
    if value.layout != torch.strided:
        return unknown(f"sparse tensor ({str(value.layout).removeprefix('torch.')})")
    if value.device.type != "cpu":
        return unknown(f"tensor on the device {value.device.type}")
    if value.dtype not in TAKEN_DTYPES:
        return unknown(f"tensor of {str(value.dtype).removeprefix('torch.')}")
    left[1] -= value.numel()
    if left[1] < 0:
        return unknown(f"tensor of {value.numel():,} elements")
    if type(value) is not Tensor and type(value) is not torch.nn.Parameter:
        value = value.as_subclass(Tensor)
    return value.resolve_neg()


def _from_numpy(value: Any) -> Any:
    "Python's number for NumPy's; the name of anything else of NumPy's."
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    if isinstance(value, np.str_):
        return str.__getitem__(value, slice(None))
    if isinstance(value, np.ndarray):
        return unknown(f"NumPy array {value.shape} {value.dtype}")
    return unknown(f"NumPy {type(value).__name__}")
