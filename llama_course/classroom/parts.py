"""A learner's answers, made into the parts of a LLaMA: what `Parts`, `Step` and the cache take.

Each slot is filled by one exercise. What is missing is the course's own part.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama_course.attention import Attention, attend
from llama_course.classroom.notebooks import read_notebook
from llama_course.classroom.worker import run_cell
from llama_course.feedforward import FeedForward
from llama_course.model import Llama, LlamaConfig, Parts
from llama_course.norm import RMSNorm
from llama_course.rope import apply_rotary
from llama_course.serving import LayerBlocks
from llama_course.support.errors import UserError
from llama_course.training import Recipe, Step, loss_of

TILE = 64  # queries and keys of a tile of attention
SLOTS = {  # part of the model -> the functions that can fill it, the best first
    "norm": ("rms_norm",),
    "feed-forward": ("swiglu",),
    "RoPE": ("rope",),
    "attention": ("lean_attention", "tiled_attention"),
    "cache": ("ragged_step",),
    "loss": ("cross_entropy",),
    "optimizer": ("adamw_step",),
    "schedule": ("learning_rate",),
    "sampler": ("draw_tokens",),
}


@dataclass(frozen=True)
class Part:
    "What fills a slot."

    slot: str
    name: str  # of the function
    function: Callable | None  # None: the course's own part
    where: str  # the learner's notebook, or why the course stands in


@dataclass(frozen=True)
class Assembly:
    "A learner's parts, one for each slot."

    parts: dict[str, Part] = field(default_factory=dict)

    def function(self, slot: str) -> Callable | None:
        "The learner's function, or None."
        return self.parts[slot].function if slot in self.parts else None

    @property
    def own(self) -> list[Part]:
        "The parts that are the learner's."
        return [part for part in self.parts.values() if part.function]

    def only(self, *slots: str) -> "Assembly":
        "The same with the course's parts in all other slots."
        return Assembly({slot: part for slot, part in self.parts.items() if slot in slots})

    def without(self, slot: str, why: str) -> "Assembly":
        "The same with the course's part in one slot."
        part = replace(self.parts[slot], function=None, where=why)
        return Assembly(self.parts | {slot: part})

    def model(self, config: LlamaConfig) -> Llama:
        "A model of these parts; its parameters are named and begun as the course's are."
        norm, feed = self.function("norm"), self.function("feed-forward")
        inside = [self.function(slot) for slot in ("RoPE", "attention", "cache")]
        parts = Parts(
            norm=norm_of(norm) if norm else RMSNorm,
            feed_forward=feed_forward_of(feed) if feed else FeedForward,
            attention=attention_of(config, *inside) if any(inside) else Attention,
        )
        model = Llama(config, parts)
        if inside[0]:
            model.rope = Positions()
        return model

    def step(self, model: Llama, recipe: Recipe) -> "OwnStep":
        "A training step with the learner's loss, optimizer and schedule."
        return OwnStep(model, recipe, self)

    def in_words(self) -> list[str]:
        "A line for each slot."
        return [
            f"{slot:13} {part.name + ' of ' if part.function else 'the course, '}{part.where}"
            for slot, part in self.parts.items()
        ]


def collect(
    folder: str | Path,  # of notebooks: a workspace
) -> Assembly:
    "The parts that are answered in a folder's notebooks. Raises `UserError` if there are none."
    files = sorted(Path(folder).glob("[0-9]*.ipynb"))
    if not files:
        raise UserError(f"no exercises in {folder}: begin with `llama-course start`")
    found: dict[str, tuple[Callable, Path]] = {}
    for path in files:
        wanted = [name for names in SLOTS.values() for name in names]
        if any(name in path.read_text(encoding="utf-8", errors="replace") for name in wanted):
            found |= {n: (f, path) for n, f in functions_of(path).items() if n in wanted}
    return Assembly({slot: _filled(slot, names, found) for slot, names in SLOTS.items()})


def functions_of(
    path: Path,  # a notebook
) -> dict[str, Callable]:
    "The functions that a notebook's cells define; of the cells only definitions are run."
    module = types.ModuleType(path.stem)
    for number, source in read_notebook(path).sources:
        run_cell(module, number, source, whole=False)
    return {
        name: thing for name, thing in vars(module).items() if isinstance(thing, types.FunctionType)
    }


def _filled(slot: str, names: tuple[str, ...], found: dict) -> Part:
    for name in names:
        if name in found and not _is_blank(found[name][0]):
            function, path = found[name]
            return Part(slot, name, function, path.name)
    return Part(slot, names[0], None, f"{names[0]} is not answered yet")


def _is_blank(function: Callable) -> bool:
    "Whether there is nothing but the line that raises."
    code = function.__code__
    return "NotImplementedError" in code.co_names and not code.co_freevars


# ------------------------------------------------------------------- the model's parts


def norm_of(function: Callable) -> type[RMSNorm]:
    "A norm that computes by rms_norm(x, weight, eps)."

    class OwnNorm(RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.weight, self.eps)

    return OwnNorm


def feed_forward_of(function: Callable) -> type[FeedForward]:
    "A feed-forward part that computes by swiglu(x, w1, w2, w3)."

    class OwnFeedForward(FeedForward):
        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.w1.weight, self.w2.weight, self.w3.weight)

    return OwnFeedForward


class Positions(nn.Module):
    "In the place of the table of angles: the positions, for a function that makes its own angles."

    def forward(self, positions: range | Tensor) -> Tensor:  # (B or 1, T)
        if isinstance(positions, range):
            return torch.arange(positions.start, positions.stop)[None]
        return positions


def attention_of(
    config: LlamaConfig,
    rope: Callable | None,  # rope(x, positions, theta)
    within: Callable | None,  # attention(q, k, v, block)
    one_more: Callable | None,  # ragged_step(q, keys, values, lengths, k, v)
) -> type[Attention]:
    "An attention of these functions; where there is none, the course's."
    groups, theta = config.n_heads // config.n_kv_heads, config.rope_theta

    def turned(x: Tensor, rotary: Tensor) -> Tensor:
        if rope is None:
            return apply_rotary(x, rotary)
        rows = (
            [rope(x[i : i + 1], p, theta) for i, p in enumerate(rotary)] if len(rotary) > 1 else []
        )
        return torch.cat(rows) if rows else rope(x, rotary[0], theta)

    def one_token(q: Tensor, k: Tensor, v: Tensor, cache: Any) -> Tensor:  # (B, H, 1, Q)
        "One more token in each row, by the learner's cache step."
        at = cache.places
        lengths = torch.full((len(q),), at.start) if isinstance(at, range) else at[:, 0]
        blocks = isinstance(cache, LayerBlocks)  # as the server's: gathered for this step
        memory = cache.update(k, v) if blocks else (cache.keys, cache.values)
        given = (*memory, lengths, k[:, :, 0], v[:, :, 0])
        out, keys, values, _ = one_more(q[:, :, 0], *given)  # type: ignore[misc]
        if not blocks:
            cache.keys.copy_(keys)
            cache.values.copy_(values)
        return out[:, :, None]

    class OwnAttention(Attention):
        def forward(
            self, x: Tensor, rotary: Tensor, mask: Tensor | None = None, cache: Any = None
        ) -> Tensor:
            q, k, v = (w(x).unflatten(-1, (-1, self.head_dim)) for w in (self.wq, self.wk, self.wv))
            q, k, v = (t.transpose(1, 2) for t in (turned(q, rotary), turned(k, rotary), v))
            if cache is not None and one_more and q.size(2) == 1:
                return self.wo(one_token(q, k, v, cache).transpose(1, 2).flatten(-2))
            if cache is not None:
                k, v = cache.update(k, v)
            if within and mask is None and q.size(2) == k.size(2):
                k, v = (t.repeat_interleave(groups, 1) if groups > 1 else t for t in (k, v))
                out = within(q, k, v, TILE)
            else:  # the exercise is about whole texts
                out = attend(q, k, v, self.backend, mask)
            return self.wo(out.transpose(1, 2).flatten(-2))

    return OwnAttention


# ------------------------------------------------------------------- the step's parts


class OwnAdamW(torch.optim.Optimizer):
    "AdamW by adamw_step(p, grad, mean, square, step, lr, decay); its state is as PyTorch's is."

    def __init__(self, groups: list[dict], function: Callable):
        super().__init__(groups, {})
        self.function = function

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        "Moves every tensor that has a gradient."
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                if not (s := self.state[p]):
                    s.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p),
                             exp_avg_sq=torch.zeros_like(p))  # fmt: skip
                s["step"] += 1
                number, decay = int(s["step"]), group["weight_decay"]
                moved, s["exp_avg"], s["exp_avg_sq"] = self.function(
                    p.detach(), p.grad, s["exp_avg"], s["exp_avg_sq"], number, group["lr"], decay
                )
                p.copy_(moved)


class OwnStep(Step):
    "The training step of chapter 15, with a learner's loss, optimizer and schedule in it."

    def __init__(self, model: nn.Module, recipe: Recipe, assembly: Assembly):
        surprise, adamw = assembly.function("loss"), assembly.function("optimizer")
        self.schedule, self.done = assembly.function("schedule"), 0

        def own_loss(model: nn.Module, batch: Tensor, precision: str = "float32") -> Tensor:
            logits = model(batch[:, :-1]).float().flatten(0, 1)
            return surprise(logits, batch[:, 1:].flatten())  # type: ignore[misc]

        recipe = replace(recipe, compile=False, precision="float32")  # own code is run as it is
        super().__init__(model, recipe, own_loss if surprise else loss_of)
        if adamw:
            groups = [
                {"params": g["params"], "weight_decay": g["weight_decay"], "lr": g["lr"]}
                for g in self.optimizer.param_groups
            ]
            self.optimizer: torch.optim.Optimizer = OwnAdamW(groups, adamw)

    def __call__(self, batch: Tensor, lr: float) -> tuple[float, float]:
        if self.schedule:
            states = list(self.optimizer.state.values())
            step = int(states[0]["step"]) if states and states[0] else 0
            lr = self.schedule(step, self.recipe.steps, self.recipe.lr, self.recipe.warmup)
        return super().__call__(batch, lr)
