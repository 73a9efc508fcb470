"""What others have ready-made, and an answer may not call: the one table of it.

What the course's own library has from an exercise's chapter on is refused too; see `own_work`.
"""

import dis
import functools
import sys
import types
from typing import Any

from llama_course.classroom.hidden import codes_of, module_of, reached, used_by

# Models, tokenizers, evaluations and file formats of others: no answer needs them.
OTHERS_PACKAGES = frozenset(
    (
        "accelerate", "bitsandbytes", "datasketch", "datatrove", "evaluate", "flash_attn", "gguf",
        "lightning", "litgpt", "llama_cpp", "lm_eval", "mistral_common", "nltk", "optimum", "peft",
        "pytorch_lightning", "safetensors", "sentencepiece", "statsmodels", "tiktoken",
        "tokenizers", "torchao", "torchmetrics", "torchtune", "transformers", "trl", "unsloth",
        "vllm", "xformers", "xllamacpp",
    )
)  # fmt: skip

# Exercise -> what is its point. A plain name is that of a function of PyTorch, however it is
# reached; a name with points is one function, of Python code, in its module.
POINT: dict[str, tuple[str, ...]] = {
    "cross_entropy": (
        "cross_entropy", "nll_loss", "log_softmax", "softmax", "logsumexp", "softmin",
        "nll_loss_nd", "cross_entropy_loss", "log_softmax_backward_data", "logcumsumexp",
        "scipy.special.logsumexp", "scipy.special.log_softmax", "scipy.special.softmax",
        "sklearn.metrics.log_loss",
    ),
    "rms_norm": ("rms_norm", "fused_rms_norm"),
    "swiglu": ("silu", "glu", "hardswish", "mish"),
    "softmax_backward": (
        "softmax_backward_data", "grad", "backward", "torch.autograd.functional.jacobian",
        "torch.autograd.functional.vjp", "torch.func.vjp", "torch.func.jacrev",
        "torch.func.jacfwd", "torch.func.jvp", "torch.func.grad",
    ),
    "llama_logits": ("transformer_encoder_layer_fwd", "multi_head_attention_forward"),
    "lean_swiglu": ("torch.utils.checkpoint.checkpoint",),
    "adamw_step": (
        "fused_adamw", "fused_adam", "foreach_lerp", "torch.optim.adamw.adamw",
        "torch.optim.adam.adam",
    ),
    "quantize_groups": (
        "quantize_per_channel", "quantize_per_tensor", "quantize_per_tensor_dynamic",
        "fake_quantize_per_channel_affine", "fake_quantize_per_tensor_affine",
    ),
    "wilson_interval": ("scipy.stats.binomtest",),
}  # fmt: skip


def functions_of_torch(
    exercise: str,  # its name
) -> frozenset[str]:
    "The names of PyTorch's functions that are the point of the exercise."
    return frozenset(name for name in POINT.get(exercise, ()) if "." not in name)


def functions_elsewhere(
    exercise: str,  # its name
) -> dict[str, Any]:  # dotted name -> the function, or None if its module is not loaded
    "The functions with an own place that are the point of the exercise."
    found = {}
    for name in POINT.get(exercise, ()):
        module, _, last = name.rpartition(".")
        if module:
            found[name] = getattr(sys.modules.get(module), last, None)
    return found


def ready_made(
    answer: Any,  # a learner's function
    exercise: str,  # its name
) -> str:
    "What the answer's code, with the learner's functions that it calls, uses; empty if nothing."
    elsewhere = functions_elsewhere(exercise)
    for thing in reached(answer):
        if found := _named(thing, elsewhere):
            return found
        if not isinstance(thing, types.FunctionType):
            continue
        names, held = used_by(thing)
        for one in held:
            if found := _named(one, elsewhere):
                return found
        imported = {name for code in codes_of(thing) for name in _imports(code)}
        roots = {name.partition(".")[0] for name in imported}
        roots |= {module_of(one).partition(".")[0] for one in held if _is_module(one)}
        if foreign := roots & OTHERS_PACKAGES:
            return min(foreign)
        for dotted in elsewhere:
            if dotted.rpartition(".")[2] in names and dotted.partition(".")[0] in roots:
                return dotted
    return ""


def _named(thing: Any, elsewhere: dict[str, Any]) -> str:
    "The name of something ready-made; empty if it is not."
    known = isinstance(thing, (type, types.FunctionType, types.BuiltinFunctionType))
    module = module_of(thing) if known or _is_module(thing) else type(thing).__module__
    if str(module).partition(".")[0] in OTHERS_PACKAGES:
        return f"{module}.{getattr(thing, '__name__', type(thing).__name__)}"
    same = (name for name, one in elsewhere.items() if one is not None and one is thing)
    return next(same, "")


def _is_module(thing: Any) -> bool:
    return isinstance(thing, types.ModuleType)


@functools.lru_cache(maxsize=500)
def _imports(code: types.CodeType) -> tuple[str, ...]:
    "The modules that the code imports."
    return tuple(i.argval for i in dis.get_instructions(code) if i.opname == "IMPORT_NAME")
