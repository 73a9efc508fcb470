"""Your own LLaMA: a learner's parts compared with the course's, trained, priced, heard, taken away.

A part is compared by itself: the course's model with that part alone in it, from the same seed and
on the same text. What departs is named, and the course's part stands in for it.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llama_course.bigram import Bigram, count_pairs
from llama_course.classroom.learner import check
from llama_course.classroom.observation import one_line
from llama_course.classroom.parts import Assembly, Part, collect
from llama_course.data import shakespeare
from llama_course.files.export import Export, export
from llama_course.files.load import load
from llama_course.files.run import RunFolder
from llama_course.generation import KVCache, generate
from llama_course.launch.budget import warmup_of
from llama_course.launch.demo import budget_of, make_shards, make_tokenizer, settle, stage
from llama_course.launch.run import run_identity, run_training
from llama_course.launch.texts import divide
from llama_course.model import Llama, LlamaConfig
from llama_course.optimizer import cosine_lr
from llama_course.support.disk import only_one, write_json
from llama_course.support.errors import UserError
from llama_course.support.shards import Shard
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, bits_per_byte, make_loader

SMALL = LlamaConfig(dim=32, n_layers=2, n_heads=4, vocab_size=61, max_seq_len=64)
STEPS = 5  # of a comparison
CLOSE = 1e-3  # relative difference of losses and gradients that float32 explains in a few steps


@dataclass
class Comparison:
    "One part in the course's model, against the course's own."

    part: Part
    losses: list[float] = field(default_factory=list)  # with the part, step by step
    library: list[float] = field(default_factory=list)  # without it
    fault: str = ""  # how it departs; empty where it does not

    def __str__(self) -> str:
        name = f"{self.part.slot}: {self.part.name} of {self.part.where}"
        return f"{name} departs: {self.fault}" if self.fault else f"{name} agrees"


def _text(seed: int, rows: int = 4, length: int = 33) -> Tensor:
    "Tokens with something to learn in them: each is often followed by the same other."
    random = torch.Generator().manual_seed(seed)
    tokens = torch.randint(61, (rows, length), generator=random)
    tokens[:, 1::2] = (7 * tokens[:, ::2][:, : length // 2] + 3) % 61
    return tokens


def losses_of(
    assembly: Assembly,
    steps: int = STEPS,
    seed: int = 0,
    config: LlamaConfig = SMALL,
) -> tuple[list[float], list[float]]:  # losses; norms of the gradients
    "What the first steps of training give with these parts."
    torch.manual_seed(seed)
    recipe = Recipe(steps=steps, warmup=2, lr=1e-2)
    step = assembly.step(assembly.model(config), recipe)
    from_schedule = [cosine_lr(i, steps, recipe.lr, recipe.warmup) for i in range(steps)]
    rows = [step(_text(seed + i), lr) for i, lr in enumerate(from_schedule)]
    return [row[0] for row in rows], [row[1] for row in rows]


def compare_parts(
    assembly: Assembly,
    seed: int = 0,
) -> list[Comparison]:
    "Each of the learner's parts, by itself, against the course's."
    library, their_norms = losses_of(Assembly(), seed=seed)
    found = []
    for part in assembly.own:
        compared = Comparison(part)
        try:
            if part.slot in TRIED:
                compared.fault = TRIED[part.slot](part.function)
            else:
                ours, norms = losses_of(assembly.only(part.slot), seed=seed)
                compared.losses, compared.library = ours, library
                compared.fault = _departure(ours, norms, library, their_norms)
        except (Exception, SystemExit) as error:
            compared.fault = f"it ends in {one_line(error, part.function)}"
        found.append(compared)
    return found


def _departure(
    ours: list[float], norms: list[float], theirs: list[float], their_norms: list[float]
) -> str:
    "The first step at which the loss or the gradient is another."
    for step in range(len(ours)):
        for what, one, other in (
            ("the loss", ours[step], theirs[step]),
            ("the gradient's norm", norms[step], their_norms[step]),
        ):
            if not math.isclose(one, other, rel_tol=CLOSE):
                return f"at step {step + 1} {what} is {one:.5g}, the course's is {other:.5g}"
    return ""


def _try_schedule(function: Any) -> str:
    for step in (0, 4, 9, 10, 50, 99):
        got, want = function(step, 100, 3e-3, 10), cosine_lr(step, 100, 3e-3, 10)
        if not math.isclose(got, want, rel_tol=1e-4):
            return f"at step {step} of 100 it gives {got:.4g}, the course's gives {want:.4g}"
    return ""


def _try_sampler(function: Any) -> str:
    "Draws by evenly spread points against the probabilities."
    logits = torch.randn(1, 11, generator=torch.Generator().manual_seed(1)).expand(4000, 11) * 2
    u = (torch.arange(4000) + 0.5) / 4000
    shares = function(logits, 0.7, u).bincount(minlength=11) / 4000
    off = (shares - (logits[0] / 0.7).softmax(-1)).abs()
    if off.max() > 1e-3:
        token = int(off.argmax())
        return (
            f"token {token} is drawn in {shares[token]:.1%} of cases, not in as many as it should"
        )
    same = torch.equal(function(logits[:3], 0.0, u[:3]), logits[:3].argmax(-1))
    return "" if same else "at temperature 0 it does not draw the likeliest token"


def _try_cache(function: Any) -> str:
    "The same greedy text with this cache as with the course's."
    torch.manual_seed(3)
    course = Llama(SMALL)
    part = Part("cache", "ragged_step", function, "")
    own = Assembly({"cache": part}).model(SMALL)
    own.load_state_dict(course.state_dict())
    want, got = (list(generate(model, [1, 2, 3], 20, temperature=0)) for model in (course, own))
    if got == want:
        return ""
    place = next(i for i, pair in enumerate(zip(got, want)) if pair[0] != pair[1])
    return f"token {place + 1} of a greedy text is another than without it"


TRIED: dict[str, Callable[[Any], str]] = {
    "sampler": _try_sampler,
    "cache": _try_cache,
    "schedule": _try_schedule,
}


def settled(
    assembly: Assembly,
    compared: list[Comparison],
) -> Assembly:
    "The assembly with the course's part wherever the learner's departs."
    for one in compared:
        if one.fault:
            assembly = assembly.without(one.part.slot, f"{one.part.name} departs: {one.fault}")
    return assembly


def judged(
    compared: list[Comparison],
) -> dict[str, str]:
    "What the judge says first of each part that departs."
    said = {}
    for one in compared:
        if one.fault and one.part.function:
            said[one.part.slot] = " ".join(check(one.part.function, one.part.name).messages[:2])
    return said


# ------------------------------------------------------------------- the run


def assemble(
    folder: str | Path = "my",  # the learner's notebooks
    run: str | Path = "runs/mine",  # the run's folder
    minutes: float | None = None,  # of training; 3 if neither this nor steps is given
    steps: int | None = None,
    seed: int | None = None,
    model: str = "demo",
    vocab_size: int = 2048,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """A model of the learner's parts, trained on Shakespeare's plays. Goes on where it was stopped.

    Raises `UserError`, `Stopped`.
    """
    wanted = collect(folder)
    compared = compare_parts(wanted, seed or 0)
    assembly, remarks = settled(wanted, compared), judged(compared)
    say("\n".join(assembly.in_words()))
    for slot, text in remarks.items():
        say(f"  the judge of {slot}: {text}")
    settings = {"model": model, "vocab_size": vocab_size, "proportions": {"shakespeare": 1.0},
                "minutes": None if steps else 3.0, "steps": None, "seed": 0,
                "origin": "your own LLaMA"}  # fmt: skip
    with only_one(run):
        place = RunFolder(run)
        settle(place, {"minutes": minutes, "steps": steps, "seed": seed}, settings)
        result = _run(place, assembly)
    result["parts"] = [
        {"slot": p.slot, "name": p.name, "own": p.function is not None, "where": p.where}
        for p in assembly.parts.values()
    ]
    result["compared"] = [
        {"slot": c.part.slot, "losses": c.losses, "library": c.library, "fault": c.fault}
        for c in compared
    ]
    result["judge"] = remarks
    write_json(place.path / "assembly.json", result)
    return result


def _run(run: RunFolder, assembly: Assembly) -> dict[str, Any]:
    "Training, and what the model is worth."
    texts = lambda: {"shakespeare": divide("shakespeare", shakespeare())}
    tokenizer = make_tokenizer(run, texts)
    shards, held_out = make_shards(run, ["shakespeare"], texts, tokenizer)
    settings = run.facts.settings
    config = LlamaConfig.from_name(settings["model"], vocab_size=settings["vocab_size"])
    if not run.is_done:
        torch.manual_seed(settings["seed"])
        model = assembly.model(config)
        recipe = _recipe(run, assembly, model, shards)
        with stage(run, "training"):
            loader, identity = make_loader(shards, recipe), run_identity(model, shards, recipe)
            step, rate = assembly.step(model, recipe), assembly.function("schedule")
            curve = (lambda at, *rest: rate(round(at), *rest)) if rate else cosine_lr
            if budget := budget_of(run, recipe, curve):
                step.schedule = None  # the budget asks it: the number of steps is revised
            run_training(step, loader, run.path, identity, locked=True, budget=budget)
        model.save(run.path)
    trained, _ = load(run.path)
    own = assembly.model(config)
    own.load_state_dict(trained.state_dict())
    own.eval()
    revisions = run.facts.revisions
    result = {"bits_per_byte": _bits(own, held_out["shakespeare"], run.recipe.seq_len),
              "bigram": bigram_bits(shards["shakespeare"], held_out["shakespeare"], tokenizer),
              "steps": revisions[-1][1] if revisions else run.recipe.steps}  # fmt: skip
    prompt = tokenizer.encode("ROMEO:", bos=True)
    said = speak_by(assembly, own, prompt, 60, settings["seed"], tokenizer.eos_id)
    return result | {"said": tokenizer.decode(prompt + said)}


def _recipe(run: RunFolder, assembly: Assembly, model: Llama, shards: dict[str, Shard]) -> Recipe:
    "As the demo's; minutes become a first plan by measuring a few steps, see `TimeBudget`."
    if run.facts.recipe:
        return run.recipe
    settings = run.facts.settings
    plain = Recipe(1, settings["proportions"], seed=settings["seed"], attention="rows")
    steps = settings["steps"]
    if not steps:
        with stage(run, "measuring"):
            seconds = _seconds_per_step(assembly, model, shards, plain)
        run.note(seconds_per_step=round(seconds, 5))
        steps = max(1, round(60 * settings["minutes"] / seconds))
    recipe = replace(plain, steps=steps, warmup=warmup_of(steps))
    run.note(recipe=asdict(recipe))
    return recipe


def _seconds_per_step(
    assembly: Assembly, model: Llama, shards: dict[str, Shard], recipe: Recipe
) -> float:
    "The median of a few steps; the model gets its weights back."
    before = {name: t.clone() for name, t in model.state_dict().items()}
    step, loader, taken = assembly.step(model, recipe), make_loader(shards, recipe), []
    for number in range(7):
        began = time.perf_counter()
        step(loader.batch(number), recipe.lr / 100)
        taken.append(time.perf_counter() - began)
    model.load_state_dict(before)
    return sorted(taken[2:])[2]


def _bits(model: nn.Module, shard: Shard, seq_len: int) -> float:
    return bits_per_byte(model, shard.tokens, shard.text_bytes, seq_len)


def bigram_bits(
    train: Shard,
    held_out: Shard,
    tokenizer: Tokenizer,
) -> float:
    "What the bigram of chapter 1 needs for the same text, in bits per byte."
    tokens = torch.as_tensor(np.asarray(train.tokens, dtype=np.int64))
    return _bits(Bigram.from_counts(count_pairs([tokens], tokenizer.vocab_size)), held_out, 256)


@torch.no_grad()
def speak_by(
    assembly: Assembly,
    model: Llama,  # of these parts
    prompt: list[int],
    tokens: int,  # at most
    seed: int,
    stop_id: int,
) -> list[int]:
    "What the model says, drawn by the learner's sampler from the learner's cache."
    draw = assembly.function("sampler")
    if draw is None:
        ids = generate(model, prompt, tokens, temperature=0.8, seed=seed, stop_id=stop_id)
        return list(ids)
    random, said = torch.Generator().manual_seed(seed), list[int]()
    cache, new = KVCache(model, max_len=len(prompt) + tokens), torch.tensor([prompt])
    for _ in range(tokens):
        logits = model(new, cache=cache)[:, -1]
        token = int(draw(logits, 0.8, torch.rand(1, generator=random)))
        if token == stop_id:
            break
        said.append(token)
        new = torch.tensor([[token]])
    return said


# ------------------------------------------------------------------- read by another program


def export_gguf(
    run: str | Path,  # a run's folder
) -> Path:
    "The model as a GGUF file, for llama.cpp and ollama; the one that is there, if it is."
    folder = Path(run) / "gguf"
    if not folder.exists():
        export(Export(run=Path(run), to="gguf", out=folder, kind="F32"))
    return next(folder.glob("*.gguf"))


READER = """
import json, sys, urllib.request, xllamacpp
path, prompt, count = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path = path
settings.n_ctx, settings.n_parallel, settings.verbosity = 512, 1, -1
server = xllamacpp.Server(settings)
ask = {"prompt": prompt, "n_predict": count, "temperature": 0.0, "top_k": 1,
       "repeat_penalty": 1.0, "return_tokens": True, "cache_prompt": False}
request = urllib.request.Request(server.listening_address + "/completion",
    json.dumps(ask).encode(), {"Content-Type": "application/json"})
print(json.dumps(json.loads(urllib.request.urlopen(request).read())["tokens"]))
"""


def read_by_llama_cpp(
    path: Path,  # a GGUF file
    prompt: list[int],
    count: int = 16,  # tokens
) -> list[int] | None:  # what it writes greedily; None where llama.cpp is not installed
    "llama.cpp's continuation, in a process of its own: a crash there ends nothing here."
    if find_spec("xllamacpp") is None:
        return None
    asked = json.dumps([str(path), prompt, count])
    ran = subprocess.run(
        [sys.executable, "-c", READER], input=asked, capture_output=True, text=True, timeout=300
    )
    if ran.returncode:
        raise UserError(f"llama.cpp could not read {path}: {ran.stderr.strip().splitlines()[-1:]}")
    return json.loads(ran.stdout.splitlines()[-1])


def read_back(
    run: str | Path,
    prompt: str = "ROMEO:",
    count: int = 16,
) -> dict[str, Any]:  # the file; what is written greedily, here and there
    "The run as GGUF, and whether llama.cpp goes on as the course does."
    path = export_gguf(run)
    model, tokenizer = load(Path(run))
    ids = tokenizer.encode(prompt, bos=True)
    here = list(generate(model, ids, count, temperature=0))
    there = read_by_llama_cpp(path, ids, count)
    return {
        "file": str(path),
        "here": tokenizer.decode(here),
        "llama.cpp": None if there is None else tokenizer.decode(there),
        "same": None if there is None else there == here,
    }
