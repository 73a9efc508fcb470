"""What the judge knows of the four exercises in `exercises/13_checkpointing.ipynb`. Spoilers
from here on."""

import functools
import itertools

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import LibraryShortcut
from llama_course.support.ledger import ledger


def gate_cases(seed: int):
    "Arguments (a, b) in all dtypes; some gates are far on either side."
    random = torch.Generator().manual_seed(seed)
    for dtype, shape, size in (
        (torch.bfloat16, (4, 6, 32), 2),
        (torch.float32, (5, 24), 1),
        (torch.float32, (3, 16), 30),
        (torch.float64, (2, 3, 8), 3),
        (torch.float16, (6, 40), 4),
    ):
        a, b = (torch.randn(shape, generator=random) for _ in range(2))
        yield (size * a).to(dtype), b.to(dtype)


lean_swiglu = Exercise(
    "lean_swiglu",
    chapter="13_checkpointing",
    kind="rebuild",
    minutes=40,
    difficulty=3,
    wrt=("a", "b"),
    points={"values": 1, "gradients": 2, "invariant": 1, "ledger": 6},
    hints=(
        "u = silu(a) * b, with silu(a) = a * sigmoid(a). A torch.autograd.Function has "
        "forward(ctx, a, b) and backward(ctx, grad); what backward needs goes through "
        "ctx.save_for_backward.",
        "With s = sigmoid(a): the gradient of b is g a s; that of a is g b s (1 + a (1 - s)),"
        " by the product rule and s' = s (1 - s).",
        "Save a and b, which exist anyway, and compute s again in the backward pass. An attribute "
        "of ctx that holds a tensor made in forward is kept, too. Results and gradients have "
        "the dtype of a and b.",
    ),
)
lean_swiglu.cases(gate_cases)


@lean_swiglu.reference
def gated(a, b):
    return F.silu(a) * b


@lean_swiglu.limit("saved_bytes", "a and b exist anyway; nothing else is needed")
def most_saved_bytes_of_lean_swiglu(a, b):
    return 0


@lean_swiglu.invariant("silu(a) - silu(-a) = a, so the difference of two gates is a b")
def silu_a_silu_a_a(seen):
    a, b = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    return torch.allclose(seen(a, b).value - seen(-a, b).value, a * b, atol=1e-5)


def _own_backward(gradients, forward=gated, keep=lambda ctx, a, b: None):
    """An answer with the backward function `gradients(g, a, b, s) -> (of a, of b)`, in float32
    at least."""

    class Gate(torch.autograd.Function):
        @staticmethod
        def forward(ctx, a, b):
            ctx.save_for_backward(a, b)
            ctx.more = keep(ctx, a, b)
            return forward(a, b)

        @staticmethod
        def backward(ctx, grad):
            a, b, g = (
                t if t.dtype == torch.float64 else t.float() for t in (*ctx.saved_tensors, grad)
            )
            return tuple(t.to(grad.dtype) for t in gradients(g, a, b, a.sigmoid()))

    return Gate.apply


def _right(g, a, b, s):
    return g * b * s * (1 + a * (1 - s)), g * a * s


lean_swiglu.right(_own_backward(_right))


@lean_swiglu.right
def checkpointed_gate(a, b):
    return checkpoint(gated, a, b, use_reentrant=False, preserve_rng_state=False)


class _Again(torch.autograd.Function):
    "Lets autograd do the work in the backward pass."

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return b * a * torch.sigmoid(a.double()).to(a.dtype)

    @staticmethod
    def backward(ctx, grad):
        inputs = [t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            u = gated(*inputs)
        return torch.autograd.grad(u, inputs, grad)


lean_swiglu.right(_Again.apply)


@lean_swiglu.mistake("autograd keeps silu(a)", hint=1)
def autograd_keeps_silu_a(a, b):
    "F.silu(a) * b is right, but the product keeps silu(a): write the backward function yourself."
    return gated(a, b)


@lean_swiglu.mistake("written out, it keeps even more", hint=1)
def written_out_it_keeps_even_more(a, b):
    "a * sigmoid(a) * b keeps the sigmoid and a * sigmoid(a), one for each product."
    return a * torch.sigmoid(a) * b


@lean_swiglu.mistake("copies hidden on ctx", hint=3)
def copies_hidden_on_ctx(a, b):
    "An attribute of ctx keeps a tensor alive, whether save_for_backward knows of it or not."
    return _own_backward(_right, keep=lambda ctx, a, b: (a.float().sigmoid(), F.silu(a.float())))(
        a, b
    )


@lean_swiglu.mistake("the derivative of the sigmoid", hint=2)
def the_derivative_of_the_sigmoid(a, b):
    """s (1 - s) is the derivative of sigmoid(a); silu(a) is a times that, and needs the product
    rule."""
    return _own_backward(lambda g, a, b, s: (g * b * s * (1 - s), g * a * s))(a, b)


@lean_swiglu.mistake("half of the product rule", hint=2)
def half_of_the_product_rule(a, b):
    "In a * sigmoid(a) both factors depend on a: the second term is missing."
    return _own_backward(lambda g, a, b, s: (g * b * s, g * a * s))(a, b)


@lean_swiglu.mistake("b is missing in the gradient of a", hint=2)
def b_is_missing_in_the_gradient_of_a(a, b):
    "u = silu(a) b: the derivative by a still has the factor b."
    return _own_backward(lambda g, a, b, s: (g * s * (1 + a * (1 - s)), g * a * s))(a, b)


@lean_swiglu.mistake("the gradient of b is the sigmoid", hint=2)
def the_gradient_of_b_is_the_sigmoid(a, b):
    "The derivative of u by b is silu(a) = a sigmoid(a), not the sigmoid alone."
    return _own_backward(lambda g, a, b, s: (_right(g, a, b, s)[0], g * s))(a, b)


@lean_swiglu.mistake("the gradients change places", hint=2)
def the_gradients_change_places(a, b):
    "backward returns the gradients in the order of forward's arguments: a first, then b."
    return _own_backward(lambda g, a, b, s: _right(g, a, b, s)[::-1])(a, b)


@lean_swiglu.mistake("the gate and the value change places", hint=1)
def the_gate_and_the_value_change_places(a, b):
    "The silu is taken of a, the first argument."
    return gated(b, a)


@lean_swiglu.mistake("a sigmoid for a gate", hint=1)
def a_sigmoid_for_a_gate(a, b):
    "That is the GLU of 2016: sigmoid(a) b. SwiGLU's gate is a sigmoid(a)."
    return torch.sigmoid(a) * b


@lean_swiglu.mistake("the result stays float32", hint=3)
def the_result_stays_float32(a, b):
    "The result must have the dtype of a and b."
    return gated(a.to(torch.promote_types(a.dtype, torch.float32)), b)


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
    points={"values": 8, "invariant": 2},
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


def budget_cases(seed: int):
    "Arguments (x, four matrices, budget in bytes): no rule of thumb is best in all."
    random = torch.Generator().manual_seed(seed)
    for widths, budget in (
        ([12, 16, 24, 12, 20], 1002),
        ([32, 32, 24, 64, 64], 3582),
        ([16, 16, 48, 24, 20], 2340),
        ([12, 16, 24, 12, 20], 864),  # two products fit exactly
    ):
        matrices = [
            torch.randn(a, b, generator=random) / a**0.5 for a, b in zip(widths, widths[1:])
        ]
        yield torch.randn(6, widths[0], generator=random), *matrices, budget


def chain(x, *matrices):
    "gelu after each product."
    for w in matrices:
        x = F.gelu(x @ w)
    return x


def run_keeping(x, matrices, keep):
    """The chain; the product with matrices[i] is kept for the backward pass if keep[i], else
    computed again."""
    asked = {False: 0, True: 0}  # products met so far: on the way there, and in the backward pass

    def policy(ctx, op, *args, **kwargs):
        if op is not torch.ops.aten.mm.default:
            return CheckpointPolicy.PREFER_RECOMPUTE
        asked[ctx.is_recompute] += 1
        kept = keep[asked[ctx.is_recompute] - 1]
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    return checkpoint(
        chain, x, *matrices, use_reentrant=False, preserve_rng_state=False, context_fn=contexts
    )


within_budget = Exercise(
    "within_budget",
    chapter="13_checkpointing",
    kind="extend",
    minutes=30,
    difficulty=2,
    wrt=("x", "w1", "w2", "w3", "w4"),
    factor=2000.0,  # four products deep, and sums in which much cancels
    points={"values": 1, "gradients": 1, "ledger": 8},
    hints=(
        "Two lists first: what each product takes in bytes, x.shape[0] * w.shape[1] * "
        "x.element_size(), and what it costs to compute it again, 2 * x.shape[0] * w.shape[0]"
        " * w.shape[1].",
        "A rule of thumb (the first ones, the smallest, the dearest, the most FLOPs a byte) "
        "is not always best: one large product may leave room that two smaller ones would "
        "fill.",
        "There are 2**4 choices: itertools.product((False, True), repeat=4). Of those that "
        "fit, take the one whose recomputed products cost least.",
    ),
)
within_budget.cases(budget_cases)


@within_budget.reference
def whole_chain(x, w1, w2, w3, w4, budget):
    return chain(x, w1, w2, w3, w4)


def _sizes(x, matrices) -> tuple:
    "Bytes of each product, and FLOPs to compute it again."
    T = x.shape[0]
    return [x.element_size() * T * w.shape[1] for w in matrices], [
        2 * T * w.numel() for w in matrices
    ]


def _best(sizes, costs, budget) -> tuple:
    "The choice that fits, and costs least."
    picked = lambda of, keep, which: sum(n for n, k in zip(of, keep) if k == which)
    choices = itertools.product((False, True), repeat=len(sizes))
    fitting = (keep for keep in choices if picked(sizes, keep, True) <= budget)
    return min(fitting, key=lambda keep: picked(costs, keep, False))


@within_budget.limit("saved_bytes", "that is the budget")
def most_saved_bytes_of_within_budget(x, w1, w2, w3, w4, budget):
    return budget


@within_budget.limit("backward_flops", "the best choice that fits needs no more")
def most_backward_flops_of_within_budget(x, *rest):
    *matrices, budget = rest
    sizes, costs = _sizes(x, matrices)
    again = sum(cost for cost, kept in zip(costs, _best(sizes, costs, budget)) if not kept)
    return 2 * sum(costs) + again  # the two gradients of each product, and what is computed again


@within_budget.right
def over_all_choices(x, w1, w2, w3, w4, budget):
    matrices = w1, w2, w3, w4
    return run_keeping(x, matrices, _best(*_sizes(x, matrices), budget))


@within_budget.right
def as_a_knapsack(x, *rest):
    *matrices, budget = rest
    sizes, costs = _sizes(x, matrices)
    best = {
        0: (0, ())
    }  # bytes used -> FLOPs saved, and by which products: the knapsack, product by product
    for i, (size, cost) in enumerate(zip(sizes, costs)):
        for used, (saved, kept) in list(best.items()):
            if used + size <= budget and saved + cost > best.get(used + size, (-1,))[0]:
                best[used + size] = saved + cost, (*kept, i)
    kept = max(best.values())[1]
    return run_keeping(x, matrices, [i in kept for i in range(len(matrices))])


def _by_rule(order):
    """An answer that keeps what fits, in the order of a rule: order(sizes, costs) -> key of
    product i."""

    def answer(x, *rest):
        *matrices, budget = rest
        sizes, costs = _sizes(x, matrices)
        keep, left = [False] * len(matrices), budget
        for i in sorted(range(len(matrices)), key=order(sizes, costs)):
            if sizes[i] <= left:
                keep[i], left = True, left - sizes[i]
        return run_keeping(x, matrices, keep)

    return answer


@within_budget.mistake("plain autograd", hint=1)
def plain_autograd(x, w1, w2, w3, w4, budget):
    "Without a policy everything is kept, the gelu's results as well."
    return chain(x, w1, w2, w3, w4)


@within_budget.mistake("every product is kept", hint=1)
def every_product_is_kept(x, w1, w2, w3, w4, budget):
    "All products together are more than the budget: some have to be computed again."
    return run_keeping(x, (w1, w2, w3, w4), [True] * 4)


@within_budget.mistake("no product is kept", hint=1)
def no_product_is_kept(x, w1, w2, w3, w4, budget):
    "That fits any budget, and computes everything again: use the room that there is."
    return run_keeping(x, (w1, w2, w3, w4), [False] * 4)


@within_budget.mistake("the first ones, as far as they fit", hint=2)
def the_first_ones_as_far_as_they_fit(x, *rest):
    "The order in which products are made says nothing about what they cost."
    return _by_rule(lambda sizes, costs: lambda i: i)(x, *rest)


@within_budget.mistake("the last ones, as far as they fit", hint=2)
def the_last_ones_as_far_as_they_fit(x, *rest):
    "The last ones are needed first in the backward pass, but that makes them no dearer."
    return _by_rule(lambda sizes, costs: lambda i: -i)(x, *rest)


@within_budget.mistake("the smallest first", hint=2)
def the_smallest_first(x, *rest):
    "Many small products fit, but they may be the cheap ones."
    return _by_rule(lambda sizes, costs: sizes.__getitem__)(x, *rest)


@within_budget.mistake("the dearest first", hint=2)
def the_dearest_first(x, *rest):
    "The dearest product may take the room of two that are dearer together."
    return _by_rule(lambda sizes, costs: lambda i: -costs[i])(x, *rest)


@within_budget.mistake("most FLOPs a byte first", hint=2)
def most_flops_a_byte_first(x, *rest):
    """The best rule of thumb, and still none: it may leave room that is worth more than its last
    choice."""
    return _by_rule(lambda sizes, costs: lambda i: -costs[i] / sizes[i])(x, *rest)


@within_budget.mistake("the last product is never kept", hint=3)
def the_last_product_is_never_kept(x, w1, w2, w3, w4, budget):
    """The result of the chain is a gelu; its argument, the last product, is needed like the
    others."""
    sizes, costs = _sizes(x, (w1, w2, w3, w4))
    return run_keeping(x, (w1, w2, w3, w4), (*_best(sizes[:3], costs[:3], budget), False))


@within_budget.mistake("cut off from the weights", hint=1)
def cut_off_from_the_weights(x, w1, w2, w3, w4, budget):
    "The products must be run with gradients on, also those that are kept."
    return run_keeping(x, [w.detach() for w in (w1, w2, w3, w4)], [True] * 4)


def stack_block(x, w, v):  # (T, D), (D, F), (F, D)
    "x, and what a normalized two-matrix network adds to it."
    return x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ w) @ v


def size_of(x):
    "Root mean square, for a plot."
    return x.detach().square().mean().sqrt()


frugal_stack = Exercise(
    "frugal_stack",
    chapter="13_checkpointing",
    kind="diagnose",
    minutes=30,
    difficulty=3,
    wrt=("x", "w", "v"),
    factor=2000.0,  # three blocks deep, and sums over all tokens in which much cancels
    points={"values": 1, "gradients": 3, "ledger": 6},
    hints=(
        "A checkpoint keeps its arguments. Whatever is computed before the call and handed in"
        " is kept, and so is what that computation keeps itself.",
        "Ask of each line with saved_tensors from llama_course.support.ledger: which block "
        "keeps something of width F? And what do the sizes keep, which are only for a plot?",
        "All of a block belongs into the checkpoint: checkpoint(block, x, w[i], v[i], "
        "use_reentrant=False). The sizes are numbers: .detach() before anything is computed "
        "for them.",
    ),
)


@frugal_stack.cases
def cases_of_frugal_stack(seed):
    random = torch.Generator().manual_seed(seed)
    for dtype, T, D, F_ in (
        (torch.float64, 5, 6, 16),
        (torch.float32, 7, 8, 24),
        (torch.float32, 4, 10, 20),
    ):
        shapes = (T, D), (3, D, F_), (3, F_, D)
        yield tuple((torch.randn(shape, generator=random) / 2).to(dtype) for shape in shapes)


@frugal_stack.reference
def plain_stack(x, w, v):
    sizes = []
    for i in range(3):
        x = stack_block(x, w[i], v[i])
        sizes.append(size_of(x))
    return x, torch.stack(sizes)


@frugal_stack.limit("saved_bytes", "the inputs of the second and the third block are enough")
def most_saved_bytes_of_frugal_stack(x, w, v):
    return 2 * x.nbytes


@frugal_stack.limit("flops", "on the way there each block is computed once")
def most_flops_of_frugal_stack(x, w, v):
    return 2 * 2 * x.shape[0] * w.numel()


@frugal_stack.limit("backward_flops", "each block is computed again once, not more")
def most_backward_flops_of_frugal_stack(x, w, v):
    return 3 * 2 * 2 * x.shape[0] * w.numel()


_once = functools.partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


def _stack(step, size=size_of):
    "An answer whose block i is run by step(i, x, w, v)."

    def answer(x, w, v):
        sizes = []
        for i in range(3):
            x = step(i, x, w[i], v[i])
            sizes.append(size(x))
        return x, torch.stack(sizes)

    return answer


frugal_stack.right(_stack(lambda i, x, w, v: _once(stack_block, x, w, v)))


@frugal_stack.right
def checkpointed_as_a_whole(x, w, v):
    def whole(x, w, v):
        return plain_stack(x, w, v)

    return _once(whole, x, w, v)


@frugal_stack.right
def sizes_without_gradients(x, w, v):
    stream = [x]
    for i in range(3):
        stream.append(_once(lambda x, i=i: stack_block(x, w[i], v[i]), stream[-1]))
    with torch.no_grad():
        sizes = [(x * x).mean() ** 0.5 for x in stream[1:]]
    return stream[-1], torch.stack(sizes)


@frugal_stack.mistake("no checkpoint", hint=3)
def no_checkpoint(x, w, v):
    "Plain calls keep everything: each block belongs into a checkpoint."
    return plain_stack(x, w, v)


@frugal_stack.mistake("the hidden layer is computed before the checkpoint", hint=1)
def the_hidden_layer_is_computed_before_the_checkpoint(x, w, v):
    """One block computes its hidden layer outside and hands it in: a checkpoint keeps its
    arguments."""

    def step(i, x, w, v):
        if i != 1:
            return _once(stack_block, x, w, v)
        return x + _once(lambda h, v: h @ v, F.gelu(F.layer_norm(x, x.shape[-1:]) @ w), v)

    return _stack(step)(x, w, v)


@frugal_stack.mistake("the norms stand before the checkpoint", hint=1)
def the_norms_stand_before_the_checkpoint(x, w, v):
    """The normalized stream is the checkpoint's argument and is kept, beside the stream that the
    norm keeps."""
    inner = lambda n, w, v: F.gelu(n @ w) @ v
    return _stack(lambda i, x, w, v: x + _once(inner, F.layer_norm(x, x.shape[-1:]), w, v))(x, w, v)


@frugal_stack.mistake("only the first block is checkpointed", hint=2)
def only_the_first_block_is_checkpointed(x, w, v):
    """The second and the third block keep everything; each of them belongs into a checkpoint of
    its own."""
    return _stack(lambda i, x, w, v: stack_block(x, w, v) if i else _once(stack_block, x, w, v))(
        x, w, v
    )


@frugal_stack.mistake("the sizes keep their graph", hint=3)
def the_sizes_keep_their_graph(x, w, v):
    "The sizes are for a plot: detached, or their graph is kept, and a gradient runs through it."
    return _stack(
        lambda i, x, w, v: _once(stack_block, x, w, v), lambda x: x.square().mean().sqrt()
    )(x, w, v)


_NOTES: list = []


@frugal_stack.mistake("copies for the plot in a list", hint=2)
def copies_for_the_plot_in_a_list(x, w, v):
    "A list that outlives the call holds a copy of the stream after each block."
    _NOTES.clear()
    step = lambda i, x, w, v: _once(stack_block, x, w, v)
    return _stack(step, lambda x: _NOTES.append(x.detach().double() + 0) or size_of(x))(x, w, v)


@frugal_stack.mistake("a run of its own for each size", hint=3)
def a_run_of_its_own_for_each_size(x, w, v):
    """The first block is run three times, the second twice: the stream after a block is there,
    use it."""
    first = lambda n: functools.reduce(lambda x, i: stack_block(x, w[i], v[i]), range(n), x)
    with torch.no_grad():
        sizes = [size_of(first(n)) for n in (1, 2, 3)]
    return _once(lambda: first(3)), torch.stack(sizes)


@frugal_stack.mistake("no_grad instead of a checkpoint", hint=3)
def no_grad_instead_of_a_checkpoint(x, w, v):
    "no_grad keeps nothing because it forgets the gradients, too: that of the network is lost."

    def step(i, x, w, v):
        with torch.no_grad():
            added = stack_block(x, w, v) - x
        return x + added + 0 * (w.sum() + v.sum())

    return _stack(step)(x, w, v)


@frugal_stack.mistake("the sizes before the blocks", hint=2)
def the_sizes_before_the_blocks(x, w, v):
    "The size is that of the stream after each block, not before."
    sizes = []
    for i in range(3):
        sizes.append(size_of(x))
        x = _once(stack_block, x, w[i], v[i])
    return x, torch.stack(sizes)


@frugal_stack.mistake("the stream is left out", hint=3)
def the_stream_is_left_out(x, w, v):
    "A block adds to its input; x + is missing."
    step = lambda i, x, w, v: _once(lambda x, w, v: stack_block(x, w, v) - x, x, w, v)
    return _stack(step)(x, w, v)
