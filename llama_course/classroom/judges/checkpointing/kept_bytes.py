"What the judge knows of `kept_bytes`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    checkpoint,
)

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import LibraryShortcut
from llama_course.support.ledger import ledger


def network(x, w_in, gain, w_out, checkpointed):  # (T, D), (D, F), (F,), (F, D)
    "The network of the exercise."

    def inner(x):
        return F.gelu(x @ w_in) * gain

    h = (
        checkpoint(inner, x, use_reentrant=False, preserve_rng_state=False)
        if checkpointed
        else inner(x)
    )
    return x + (h @ w_out).relu()


class _NothingRuns(TorchFunctionMode):
    "Within it whatever is asked of PyTorch raises `LibraryShortcut`."

    def __torch_function__(self, func, types, args=(), kwargs=None):
        raise LibraryShortcut("it asks PyTorch to compute: write a formula, nothing is run here")


def _by_a_formula(answer, *args):
    "How an answer is called in which nothing is run."
    with _NothingRuns():
        return answer(*args)


kept_bytes = Exercise(
    "kept_bytes",
    call=_by_a_formula,
    chapter="13_checkpointing",
    kind="diagnose",
    minutes=30,
    difficulty=2,
    points={"values": 8, "laws": 2},
    hints=(
        "Go through the operations and ask what each derivative needs: a product both "
        "factors, gelu its argument, relu its result (or argument, they have the same sign), "
        "an addition nothing.",
        "Arguments and the final result exist anyway and do not count. But the relu's result "
        "is neither: x is added to it.",
        "Plain, three tensors of T x F and one of T x D are kept: x @ w_in, gelu of it, that "
        "times gain; and the relu. Each element has `width` bytes.",
        "Checkpointed, what is inside is not kept. What comes out of the checkpoint is an "
        "argument of the next product, and is.",
    ),
)


@kept_bytes.cases
def cases_of_kept_bytes(seed):
    random = torch.Generator().manual_seed(seed)
    for width, checkpointed in ((2, False), (4, True), (4, False), (2, True)):
        T, D, F_ = (int(n) for n in torch.randint(3, 60, (3,), generator=random))
        yield T, D, D + F_, width, checkpointed


@kept_bytes.reference
def counted(T, D, F, width, checkpointed):
    with torch.device("meta"):
        shapes = (T, D), (D, F), (F,), (F, D)
        dtype = {2: torch.bfloat16, 4: torch.float32}[width]
        tensors = [torch.empty(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    return ledger(network, *tensors, checkpointed, backward=False).saved_bytes


@kept_bytes.invariant("twice the tokens keep twice the bytes")
def twice_the_tokens_keep_twice_the_bytes(seen):
    return all(
        seen(20, 8, 24, 2, c).value == 2 * seen(10, 8, 24, 2, c).value for c in (False, True)
    )


@kept_bytes.right
def by_one_formula(T, D, F, width, checkpointed):
    return width * T * ((1 if checkpointed else 3) * F + D)


@kept_bytes.right
def tensor_by_tensor(T, D, F, width, checkpointed):
    tensors = {"x @ w_in": T * F, "gelu": T * F, "times gain": T * F, "relu": T * D}
    if checkpointed:
        del tensors["x @ w_in"], tensors["gelu"]
    return sum(tensors.values()) * width


@kept_bytes.mistake("the network is run", hint=1)
def the_network_is_run(T, D, F, width, checkpointed):
    "The ledger would tell you, afterwards; here the number is to come from the shapes alone."
    return counted(T, D, F, width, checkpointed)


@kept_bytes.mistake("elements instead of bytes", hint=3)
def elements_instead_of_bytes(T, D, F, width, checkpointed):
    "An element has `width` bytes."
    return T * ((1 if checkpointed else 3) * F + D)


@kept_bytes.mistake("always four bytes", hint=3)
def always_four_bytes(T, D, F, width, checkpointed):
    "In 16 bits an element has two bytes, not four."
    return 4 * T * ((1 if checkpointed else 3) * F + D)


@kept_bytes.mistake("the arguments are counted", hint=2)
def the_arguments_are_counted(T, D, F, width, checkpointed):
    "x and the weights exist anyway, with or without a backward pass."
    return width * (T * ((1 if checkpointed else 3) * F + D) + T * D + 2 * D * F + F)


@kept_bytes.mistake("the result is counted", hint=2)
def the_result_is_counted(T, D, F, width, checkpointed):
    "The result of the last addition is not needed in the backward pass, and exists anyway."
    return width * T * ((1 if checkpointed else 3) * F + 2 * D)


@kept_bytes.mistake("the relu is forgotten", hint=2)
def the_relu_is_forgotten(T, D, F, width, checkpointed):
    "The relu keeps its result, which is not the final one: x is added to it."
    return width * T * (1 if checkpointed else 3) * F


@kept_bytes.mistake("each tensor once for input and output", hint=1)
def each_tensor_once_for_input_and_output(T, D, F, width, checkpointed):
    """gelu keeps its argument, and the product with gain keeps gelu's result: two different
    tensors."""
    return width * T * ((1 if checkpointed else 2) * F + D)


@kept_bytes.mistake("the weights are taken for constants", hint=1)
def the_weights_are_taken_for_constants(T, D, F, width, checkpointed):
    "gain and w_out are learned: the gradient of each needs the other factor of its product."
    return width * T * (F + D)


@kept_bytes.mistake("the checkpoint changes nothing", hint=4)
def the_checkpoint_changes_nothing(T, D, F, width, checkpointed):
    "What is made inside the checkpoint is dropped, and computed again in the backward pass."
    return width * T * (3 * F + D) if checkpointed else width * T * (3 * F + D)


@kept_bytes.mistake("the checkpoint keeps its input and nothing follows", hint=4)
def the_checkpoint_keeps_its_input_and_nothing_follows(T, D, F, width, checkpointed):
    "What comes out of the checkpoint is an argument of the product with w_out, which keeps it."
    return width * T * ((0 if checkpointed else 3) * F + D)
