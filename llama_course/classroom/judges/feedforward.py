"What the judge knows of the three exercises in `exercises/09_feedforward.ipynb`. Spoilers ahead."

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.own_work import refusing


def _weights(draw, dim, inside, *extra):
    "w1, w2 and w3 of a layer, each with rows of about unit length."
    shapes = (inside, dim), (dim, inside), (inside, dim)
    return [torch.randn(shape, generator=draw) / shape[1] ** 0.5 for shape in shapes]


swiglu = Exercise(
    "swiglu",
    chapter="09_feedforward",
    kind="rebuild",
    minutes=15,
    difficulty=1,
    wrt=("x", "w1", "w2", "w3"),
    factor=32.0,
    call=refusing("silu", "glu", "hardswish", "mish"),
    points={"values": 4, "gradients": 3, "invariant": 2, "ledger": 1},
    hints=(
        "Three matrices, two branches: a = x w1ᵀ goes through silu, b = x w3ᵀ stays as it is; the "
        "product of the two, element by element, goes through w2.",
        "silu(a) = a · sigmoid(a). A matrix stored as (F, D) is applied by x @ w.T, for any "
        "number of dimensions of x.",
        "a / (1 + exp(-a)) has the right values for a = -200, but its derivative there is "
        "inf / inf: torch.sigmoid takes care of both.",
        "No more than three products of matrices are needed: apply w1 once and keep what comes "
        "out, instead of applying it for a and again for sigmoid(a).",
    ),
)


@swiglu.cases
def cases_of_swiglu(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, inside, size in (
        (torch.float64, (3, 4), 6, 1.0),
        (torch.float32, (2, 5, 8), 12, 1.0),
        (torch.float32, (8,), 20, 1.0),  # a single vector
        (torch.float32, (2, 3, 6), 4, 300.0),  # gates of several hundred
        (torch.float32, (4, 1), 1, 2.0),
        (torch.bfloat16, (2, 3, 8), 16, 1.0),
    ):
        x = size * torch.randn(shape, generator=draw)
        if len(shape) > 2:
            x[0, 0] = 0
        w1, w2, w3 = _weights(draw, shape[-1], inside)
        yield tuple(t.to(dtype) for t in (x, w1, w2, w3))


@swiglu.reference
def truth_of_swiglu(x, w1, w2, w3):
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


@swiglu.right
def with_sigmoid(x, w1, w2, w3):
    a, b = x @ w1.T, x @ w3.T
    return (a * torch.sigmoid(a) * b) @ w2.T


@swiglu.right
def with_one_product_for_both(x, w1, w2, w3):
    a, b = F.linear(x, torch.cat((w1, w3))).chunk(2, -1)
    return F.linear(b * a * torch.special.expit(a), w2)


def _some(seed=1, rows=4):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 8, generator=draw), *_weights(draw, 8, 12)


@swiglu.invariant("each token is treated for itself")
def each_token_is_treated_for_itself(seen):
    x, *weights = _some()
    whole = seen(x, *weights).value
    alone = [seen(row, *weights).value for row in x]
    return torch.allclose(whole, torch.stack(alone), rtol=1e-4, atol=1e-6)


@swiglu.invariant("doubling w3 doubles the result; w1 and w3 are not the same to it")
def doubling_w3_doubles_the_result(seen):
    x, w1, w2, w3 = _some(2)
    once, twice = seen(x, w1, w2, w3).value, seen(x, w1, w2, 2 * w3).value
    other = seen(x, w3, w2, w1).value
    return torch.allclose(2 * once, twice, rtol=1e-4, atol=1e-6) and not torch.allclose(once, other)


@swiglu.limit("flops", "three products of matrices, two FLOPs per token and parameter")
def most_flops_of_swiglu(x, w1, w2, w3):
    return 6 * x.numel() // x.shape[-1] * w1.numel()


def _mlp(x, w1, w2, w3, join):
    a, b = x @ w1.T, x @ w3.T
    return join(a, b) @ w2.T


@swiglu.mistake("the derivative is inf / inf", hint=3)
def the_derivative_is_inf_by_inf(x, w1, w2, w3):
    "exp(-a) is infinite for a = -200, and so its derivative is no number: use torch.sigmoid."
    return _mlp(x, w1, w2, w3, lambda a, b: a / (1 + torch.exp(-a)) * b)


@swiglu.mistake("silu on the other branch", hint=1)
def silu_on_the_other_branch(x, w1, w2, w3):
    "silu is applied to what w1 makes; what w3 makes stays as it is."
    return _mlp(x, w1, w2, w3, lambda a, b: a * b * torch.sigmoid(b))


@swiglu.mistake("sigmoid instead of silu", hint=2)
def sigmoid_instead_of_silu(x, w1, w2, w3):
    "That is the GLU of 2016: silu(a) is a times sigmoid(a)."
    return _mlp(x, w1, w2, w3, lambda a, b: torch.sigmoid(a) * b)


@swiglu.mistake("ReLU instead of silu", hint=2)
def relu_instead_of_silu(x, w1, w2, w3):
    "That is ReGLU: silu is smooth, and below zero it is not quite zero."
    return _mlp(x, w1, w2, w3, lambda a, b: a.clamp(min=0) * b)


@swiglu.mistake("GELU instead of silu", hint=2)
def gelu_instead_of_silu(x, w1, w2, w3):
    "That is GeGLU: LLaMA's gate is silu, a times sigmoid(a)."
    return _mlp(x, w1, w2, w3, lambda a, b: F.gelu(a) * b)


@swiglu.mistake("the branches are added", hint=1)
def the_branches_are_added(x, w1, w2, w3):
    "The two branches are multiplied, element by element."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a) + b)


@swiglu.mistake("no gate", hint=1)
def no_gate(x, w1, w2, w3):
    "The branch of w3 is missing: that is the feed-forward network without its gate."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a))


@swiglu.mistake("silu of the product", hint=1)
def silu_of_the_product(x, w1, w2, w3):
    "silu comes before the product of the two branches, not after it."
    return _mlp(x, w1, w2, w3, lambda a, b: a * b * torch.sigmoid(a * b))


@swiglu.mistake("the gate is cut off from the graph", hint=2)
def the_gate_is_cut_off_from_the_graph(x, w1, w2, w3):
    "sigmoid(a) depends on x and w1, so its derivative belongs to the gradient."
    return _mlp(x, w1, w2, w3, lambda a, b: a * torch.sigmoid(a.detach()) * b)


@swiglu.mistake("w1 is applied twice", hint=4)
def w1_is_applied_twice(x, w1, w2, w3):
    "Right in value, but x @ w1.T is computed twice: a third more work."
    return (x @ w1.T * torch.sigmoid(x @ w1.T) * (x @ w3.T)) @ w2.T


@swiglu.mistake("the library's own silu", hint=2)
def the_librarys_own_silu(x, w1, w2, w3):
    "F.silu is what this task builds: a times sigmoid(a)."
    return truth_of_swiglu(x, w1, w2, w3)


chunked_swiglu = Exercise(
    "chunked_swiglu",
    chapter="09_feedforward",
    kind="extend",
    minutes=25,
    difficulty=2,
    wrt=("x", "w1", "w2", "w3"),
    factor=32.0,
    points={"values": 2, "gradients": 2, "ledger": 6},
    hints=(
        "The tokens do not see each other here, so they can go through the layer in groups: "
        "x.split(chunk), and torch.cat at the end.",
        "That bounds the largest tensor, but autograd still keeps the F numbers per token of "
        "every group for the backward pass. Which function of the chapter on checkpointing keeps "
        "only a group's input?",
        "torch.utils.checkpoint.checkpoint(layer, rows, w1, w2, w3, use_reentrant=False) for each "
        "group. Any number of leading dimensions: x.flatten(0, -2) before, .view_as(x) or "
        "unflatten after.",
    ),
)


@chunked_swiglu.cases
def cases_of_chunked_swiglu(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, inside, chunk in (
        (torch.float64, (6, 4), 24, 2),
        (torch.float32, (2, 45, 8), 40, 4),  # the last group is shorter; 4 groups are too large
        (torch.float32, (5, 8), 24, 64),  # one group
        (torch.float32, (2, 2, 1, 6), 50, 1),
        (torch.bfloat16, (2, 8, 8), 32, 3),
    ):
        x = torch.randn(shape, generator=draw)
        weights = _weights(draw, shape[-1], inside)
        yield (*(t.to(dtype) for t in (x, *weights)), chunk)


@chunked_swiglu.reference
def truth_of_chunked_swiglu(x, w1, w2, w3, chunk):
    return truth_of_swiglu(x, w1, w2, w3)


@chunked_swiglu.right
def with_checkpoints(x, w1, w2, w3, chunk):
    groups = x.flatten(0, -2).split(chunk)
    done = [
        checkpoint(with_sigmoid, rows, w1, w2, w3, use_reentrant=False, preserve_rng_state=False)
        for rows in groups
    ]
    return torch.cat(done).view(x.shape)


class _ByHand(torch.autograd.Function):
    "The same with a backward pass of its own."

    @staticmethod
    def forward(ctx, x, w1, w2, w3, chunk):
        ctx.save_for_backward(x, w1, w2, w3)
        ctx.chunk = chunk
        rows = x.flatten(0, -2)
        out = torch.empty_like(rows)
        for i in range(0, len(rows), chunk):
            out[i : i + chunk] = truth_of_swiglu(rows[i : i + chunk], w1, w2, w3)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        x, w1, w2, w3 = ctx.saved_tensors
        sums = [torch.zeros_like(w, dtype=torch.float64) for w in (w1, w2, w3)]
        parts = []
        for rows, g in zip(x.flatten(0, -2).split(ctx.chunk), grad.flatten(0, -2).split(ctx.chunk)):
            leaves = [t.detach().requires_grad_() for t in (rows, w1, w2, w3)]
            with torch.enable_grad():
                y = truth_of_swiglu(*leaves)
            of_rows, *of_weights = torch.autograd.grad(y, leaves, g)
            parts.append(of_rows)
            sums = [s + w for s, w in zip(sums, of_weights)]
        return torch.cat(parts).view(x.shape), *(s.to(x.dtype) for s in sums), None


chunked_swiglu.right(_ByHand.apply)


@chunked_swiglu.limit("largest_tensor", "at most `chunk` tokens are F wide at a time")
def most_largest_tensor_of_chunked_swiglu(x, w1, w2, w3, chunk):
    tokens = x.numel() // x.shape[-1]
    return max(x.numel(), w1.numel(), min(chunk, tokens) * len(w1))


@chunked_swiglu.limit("saved_bytes", "x, w1, w2, w3 exist anyway; nothing F wide is kept")
def most_saved_bytes_of_chunked_swiglu(x, w1, w2, w3, chunk):
    return x.nbytes


@chunked_swiglu.mistake("all tokens at once", hint=1)
def all_tokens_at_once(x, w1, w2, w3, chunk):
    "Right in value, but the F numbers of every token exist at the same time."
    return with_sigmoid(x, w1, w2, w3)


@chunked_swiglu.mistake("autograd keeps every group", hint=2)
def autograd_keeps_every_group(x, w1, w2, w3, chunk):
    "The groups are small, but all that autograd keeps of them lives until the backward pass."
    groups = x.flatten(0, -2).split(chunk)
    return torch.cat([with_sigmoid(rows, w1, w2, w3) for rows in groups]).view(x.shape)


@chunked_swiglu.mistake("the last, shorter group is lost", hint=1)
def the_last_shorter_group_is_lost(x, w1, w2, w3, chunk):
    "The number of tokens need not be a multiple of chunk."
    rows = x.flatten(0, -2)
    whole = len(rows) // chunk * chunk
    done = with_checkpoints(rows[:whole], w1, w2, w3, chunk) if whole else rows[:0]
    return torch.cat((done, torch.zeros_like(rows[whole:]))).view(x.shape)


@chunked_swiglu.mistake("chunk taken for the number of groups", hint=1)
def chunk_taken_for_the_number_of_groups(x, w1, w2, w3, chunk):
    "torch.chunk makes so many groups; split(chunk) makes groups of so many tokens."
    rows = x.flatten(0, -2)
    return with_checkpoints(x, w1, w2, w3, -(-len(rows) // chunk))


@chunked_swiglu.mistake("the shape is lost", hint=3)
def the_shape_is_lost(x, w1, w2, w3, chunk):
    "The result has the shape of x, with all its dimensions."
    return with_checkpoints(x.flatten(0, -2), w1, w2, w3, chunk)


@chunked_swiglu.mistake("groups along the last axis", hint=1)
def groups_along_the_last_axis(x, w1, w2, w3, chunk):
    "The groups are of tokens: the D numbers of one token stay together."
    pieces = zip(x.split(chunk, -1), w1.split(chunk, -1), w3.split(chunk, -1))
    return sum(with_sigmoid(rows, a, w2, b) for rows, a, b in pieces)


@chunked_swiglu.mistake("the weights are cut off", hint=3)
def the_weights_are_cut_off(x, w1, w2, w3, chunk):
    "The weights learn, too: pass them through the checkpoint, without .detach() or .data."
    return with_checkpoints(x, w1, w2.detach(), w3, chunk)


fused_feed_forward = Exercise(
    "fused_feed_forward",
    chapter="09_feedforward",
    kind="diagnose",
    minutes=15,
    difficulty=2,
    wrt=("x", "w13", "w2"),
    factor=32.0,
    points={"values": 6, "gradients": 1, "invariant": 3},
    hints=(
        "Take D = 6 and F = 24, then F = 16, as LLaMA has it. The first runs by accident.",
        "Which half of w13 is the gate? Take a w3 of zeros: the result must be zero. Then a w1 of "
        "zeros.",
        "The block adds x; the feed-forward part does not. With w2 = 0, what must come out?",
    ),
)


@fused_feed_forward.cases
def cases_of_fused_feed_forward(seed):
    draw = torch.Generator().manual_seed(seed)
    for dtype, shape, inside in (
        (torch.float64, (3, 6), 24),  # F = 4D, as in 2017
        (torch.float32, (2, 4, 6), 16),  # F = 8D / 3, as in LLaMA
        (torch.float32, (5, 8), 3),
        (torch.float32, (4,), 11),
        (torch.bfloat16, (2, 3, 12), 32),
    ):
        x = torch.randn(shape, generator=draw)
        w1, w2, w3 = _weights(draw, shape[-1], inside)
        yield x.to(dtype), torch.cat((w1, w3)).to(dtype), w2.to(dtype)


@fused_feed_forward.reference
def truth_of_fused_feed_forward(x, w13, w2):
    w1, w3 = w13[: w2.shape[1]], w13[w2.shape[1] :]
    return truth_of_swiglu(x, w1, w2, w3)


@fused_feed_forward.right
def with_chunk(x, w13, w2):
    a, b = (x @ w13.T).chunk(2, -1)
    return (F.silu(a) * b) @ w2.T


@fused_feed_forward.right
def with_two_products(x, w13, w2):
    inside = len(w13) // 2
    return (F.silu(x @ w13[:inside].T) * (x @ w13[inside:].T)) @ w2.T


@fused_feed_forward.invariant("with w2 = 0 nothing is added to the residual stream")
def nothing_is_added(seen):
    x, w1, w2, w3 = _some(3)
    return seen(x, torch.cat((w1, w3)), torch.zeros_like(w2)).value.abs().max() == 0


@fused_feed_forward.invariant("doubling the second half of w13 doubles the result")
def doubling_the_second_half(seen):
    x, w1, w2, w3 = _some(4)
    once = seen(x, torch.cat((w1, w3)), w2).value
    twice = seen(x, torch.cat((w1, 2 * w3)), w2).value
    return torch.allclose(2 * once, twice, rtol=1e-4, atol=1e-6)


def _fused(x, w13, w2, split=None, swap=False, residual=False, rule=F.silu):
    split = len(w13) // 2 if split is None else split
    both = x @ w13.T
    a, b = both[..., :split], both[..., split:]
    a, b = (b, a) if swap else (a, b)
    return (rule(a) * b) @ w2.T + (x if residual else 0)


@fused_feed_forward.mistake("cut at 4D", hint=1)
def cut_at_4d(x, w13, w2):
    "LLaMA's F is not 4D: w13 has 2F rows, so its half says where to cut."
    return _fused(x, w13, w2, 4 * x.shape[-1])


@fused_feed_forward.mistake("the code as it was given", hint=1)
def the_code_as_it_was_given(x, w13, w2):
    "Three things are wrong in it: where w13 is cut, which half is the gate, and what is added."
    return _fused(x, w13, w2, 4 * x.shape[-1], swap=True, residual=True)


@fused_feed_forward.mistake("the second half is the gate", hint=2)
def the_second_half_is_the_gate(x, w13, w2):
    "The first F rows are w1, and silu goes with w1."
    return _fused(x, w13, w2, swap=True)


@fused_feed_forward.mistake("x is added", hint=3)
def x_is_added(x, w13, w2):
    "The block adds x to what this part returns: added here as well it counts twice."
    return _fused(x, w13, w2, residual=True)


@fused_feed_forward.mistake("the gate is mended, the sum is not", hint=3)
def the_gate_is_not_mended(x, w13, w2):
    "w13 is cut where it should be, but the halves are exchanged and x is added."
    return _fused(x, w13, w2, swap=True, residual=True)


@fused_feed_forward.mistake("every second row is the gate", hint=2)
def every_second_row_is_the_gate(x, w13, w2):
    "w1 and w3 stand one below the other in w13, they are not interleaved."
    both = x @ w13.T
    return (F.silu(both[..., 0::2]) * both[..., 1::2]) @ w2.T


@fused_feed_forward.mistake("sigmoid instead of silu", hint=2)
def sigmoid_in_fused_feed_forward(x, w13, w2):
    "F.glu's gate is a sigmoid (and its second half); LLaMA's is silu."
    return _fused(x, w13, w2, rule=torch.sigmoid)


@fused_feed_forward.mistake("the gate learns nothing", hint=2)
def the_gate_learns_nothing(x, w13, w2):
    "A .detach() or .data on the gate cuts w1 off from its gradient."
    return _fused(x, w13, w2, rule=lambda a: F.silu(a.detach()))
