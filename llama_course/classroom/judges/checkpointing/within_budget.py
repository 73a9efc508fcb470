"What the judge knows of `within_budget`. Spoilers ahead."

import functools
import itertools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from llama_course.classroom.exercise import Exercise


def budget_cases(seed: int):
    "Arguments (x, four matrices, budget in bytes): no rule of thumb is best in all."
    random = torch.Generator().manual_seed(seed)
    for widths, budget, dtype in (
        ([12, 16, 24, 12, 20], 1002, torch.float32),
        ([32, 32, 24, 64, 64], 3582, torch.float32),
        ([16, 16, 48, 24, 20], 2340, torch.float32),
        ([12, 16, 24, 12, 20], 864, torch.float32),  # two products fit exactly
        ([12, 16, 24, 12, 20], 2004, torch.float64),  # the first case, in twice the bytes
        ([8, 6, 4, 6, 8], 95, torch.float32),  # nothing fits: the smallest product has 96
    ):
        matrices = [
            torch.randn(a, b, generator=random) / a**0.5 for a, b in zip(widths, widths[1:])
        ]
        x = torch.randn(6, widths[0], generator=random)
        yield *(t.to(dtype) for t in (x, *matrices)), budget


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
    points={"values": 1, "gradients": 1, "cost": 8},
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


@within_budget.mistake("four bytes for each number", hint=3)
def four_bytes_for_each_number(x, *rest):
    "How many bytes a number has, x.element_size() says: eight in float64."
    *matrices, budget = rest
    sizes, costs = _sizes(x, matrices)
    sizes = [4 * size // x.element_size() for size in sizes]
    return run_keeping(x, matrices, _best(sizes, costs, budget))


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
