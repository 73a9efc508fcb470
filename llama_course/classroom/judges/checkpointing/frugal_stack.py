"What the judge knows of `frugal_stack`. Spoilers ahead."

import functools

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import (
    checkpoint,
)

from llama_course.classroom.exercise import Exercise


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
    points={"values": 1, "gradients": 3, "cost": 6},
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
