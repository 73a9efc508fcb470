"The result of a right answer beside the target, as a picture, where one makes sense."

import contextlib
import html
import io
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.observation import observe


class Picture(NamedTuple):
    "How an exercise's result is drawn."

    title: str
    make: Callable[[], tuple]  # arguments that show it well
    draw: Callable[[Any, Any], None]  # draw(axes, result)


def _image(axes: Any, result: Tensor) -> None:
    axes.imshow(result.detach().float().reshape(result.shape[-2:]), cmap="viridis")
    axes.set(xlabel="key", ylabel="query")


def _turn(axes: Any, result: Tensor) -> None:
    "The path of each pair of numbers over the positions."
    pairs = result.detach()[0, :, 0].unflatten(-1, (-1, 2))
    for i in range(pairs.shape[1]):
        axes.plot(*pairs[:, i].T, ".-", label=f"pair {i}")
    axes.set_aspect("equal")
    axes.legend(fontsize="small")


def _lines(axes: Any, result: Any) -> None:
    axes.plot(torch.as_tensor(result).detach().float().flatten(), ".-")


def _attention(block: int | None) -> Callable[[], tuple]:
    "Queries and keys of twelve positions; with the identity for values the result is the weights."

    def make() -> tuple:
        random = torch.Generator().manual_seed(1)
        q, k = (2 * torch.randn(1, 1, 12, 12, generator=random) for _ in range(2))
        values = torch.eye(12)[None, None]
        return (q, k, values) if block is None else (q, k, values, block)

    return make


def _one_pair_at_each_position() -> tuple:
    return torch.tensor([1.0, 0, 1, 0]).expand(1, 12, 1, 4).clone(), torch.arange(12), 100.0


def _scores() -> tuple:
    random = torch.Generator().manual_seed(1)
    return (3 * torch.randn(1, 24, generator=random)).softmax(-1), 0.9


PICTURES = {
    "rope": Picture("RoPE turns each pair, the first fastest", _one_pair_at_each_position, _turn),
    "tiled_attention": Picture("attention weights, from tiles", _attention(4), _image),
    "lean_attention": Picture("attention weights", _attention(4), _image),
    "nucleus": Picture("what the nucleus keeps", _scores, _lines),
}


def picture(
    exercise: Exercise,
    answer: Callable,
) -> str:  # SVG in a paragraph; empty where there is none to draw
    "The answer's result and the reference's, side by side."
    plan = PICTURES.get(exercise.name)
    if plan is None:
        return ""
    try:
        args = plan.make()
        if len(args) != len(exercise.names):
            return ""
        with open(os.devnull, "w") as nowhere:  # what it prints was shown when it was judged
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                yours = observe(answer, *args, call=exercise.call, seconds=5).value
        target = observe(exercise.truth, *args).value
        figure = Figure(figsize=(6.4, 2.9), layout="constrained")
        for axes, name, result in zip(
            figure.subplots(1, 2), ("yours", "the target"), (yours, target)
        ):
            plan.draw(axes, result)
            axes.set_title(name)
        figure.suptitle(plan.title, fontsize="medium")
        return _svg(figure, f"{plan.title}: yours and the target, which agree")
    except Exception:  # a picture is no part of the judgement
        return ""


def _svg(figure: Figure, words: str) -> str:
    "The figure as an image that a page shows, with its text alternative."
    file = io.StringIO()
    figure.savefig(file, format="svg")
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    return f'<div role="img" aria-label="{html.escape(words)}" style="background:#fff">{svg}</div>'
