"What the judge knows of `chunked_swiglu`. Spoilers ahead."

import torch
from torch.utils.checkpoint import checkpoint

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.feedforward.common import _weights
from llama_course.classroom.judges.feedforward.swiglu import truth_of_swiglu, with_sigmoid

chunked_swiglu = Exercise(
    "chunked_swiglu",
    chapter="09_feedforward",
    kind="extend",
    minutes=25,
    difficulty=2,
    wrt=("x", "w1", "w2", "w3"),
    factor=32.0,
    points={"values": 2, "gradients": 2, "cost": 6},
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
