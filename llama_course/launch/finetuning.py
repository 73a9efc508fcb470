"""Any model, your own examples, one process or many: the loop of chapter 18 with another loss."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn

from llama_course.data import Mixture
from llama_course.files.run import RunFolder
from llama_course.instruct import (
    TASKS, Encoded, Packed, add_lora, answer_loss, apart, choose_template, is_held_out, lora_state,
    make_examples, mixture, pack)
from llama_course.model import Llama
from llama_course.parallel import make_mesh, parallelize
from llama_course.fault_tolerance import Ranks, build, set_parameter
from llama_course.launch.ranks import in_one_line, join
from llama_course.launch.run import run_identity, run_training
from llama_course.launch.weights import save_whole, whole_tensors
from llama_course.support.compare import differences
from llama_course.support.errors import UserError
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json, write_json
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, Step
from llama_course.files.checkpoint import Checkpoint
from llama_course.files.load import load_tokenizer, read_checkpoint
from llama_course.files.tokenizers import save_tokenizer
from llama_course.formats import plain_chat

def conversation(
    row,  # one parsed line
    place: str,  # file and line, for the message
) -> list[dict]:  # {"role", "content"} each
    "The line's messages. Raises `UserError` that names the place and the field."
    if not isinstance(row, dict): raise UserError(f"{place} is not a JSON object.")
    if "messages" not in row:
        row = {"answer": row.get("output")} | row
        for field in ("instruction", "answer"):
            if not isinstance(row.get(field), str):
                raise UserError(f"{place} has no text in the field {field!r}: add it, or give messages.")
        asked = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["answer"]}]
    return checked(row["messages"], place)


def checked(messages, place: str) -> list[dict]:
    "The messages, if they are a conversation in which somebody asks and the assistant answers."
    roles = "system", "user", "assistant"
    right = lambda m: isinstance(m, dict) and m.get("role") in roles and isinstance(m.get("content"), str)
    if not isinstance(messages, list) or not messages or not all(map(right, messages)):
        raise UserError(f"{place}: messages must be a list, each with role ({', '.join(roles)}) and content.")
    if messages[0]["role"] == "assistant" or not any(m["role"] == "assistant" for m in messages):
        raise UserError(f"{place}: somebody must ask, and then the assistant must answer.")
    return messages

def read_conversations(
    path,  # of a file of JSON lines
) -> dict:  # task -> list of conversations; a task is what the field `task` says, or the file's name
    "The examples of a file. Raises `UserError` with the line that is wrong."
    try: lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error: raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except UnicodeDecodeError: raise UserError(f"{path} is not text in UTF-8: convert it.") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip(): continue
        try: row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}, is not JSON ({error}): mend or remove it.") from None
        messages = conversation(row, f"{path}, line {number},")
        found.setdefault(str(row.get("task", Path(path).stem)), []).append(messages)
    if not found: raise UserError(f"{path} holds no example: one JSON object a line is needed.")
    return found

def encode_turns(
    tokenizer,
    messages: list[dict],
    template,  # from `choose_template`
) -> Iterator[Encoded]:
    "For each of the assistant's messages: the ids before it and its own, the end of text included."
    for i, message in enumerate(messages):
        if message["role"] != "assistant": continue
        before = messages[:i]
        prompt = tokenizer.encode_chat(before) if template.name == "chat" else plain_chat(tokenizer, before)
        answer = tokenizer.encode(template.lead + message["content"], eos=True)
        yield Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer))

def fitting(
    encoded: list[Encoded],
    seq_len: int,  # T
    too_long: str = "drop",  # or cut: the first T + 1 tokens, if an answer has begun by then
) -> tuple[list[Encoded], int, int]:  # those that fit; how many were dropped, how many cut
    "Examples that a row can hold."
    kept, n_cut = [], 0
    for e in encoded:
        if len(e.ids) > seq_len + 1:
            e = Encoded(e.ids[: seq_len + 1], e.is_answer[: seq_len + 1])
            if too_long == "drop" or not any(e.is_answer): continue
            n_cut += 1
        kept.append(e)
    return kept, len(encoded) - len(kept), n_cut

@dataclass(frozen=True)
class Share:
    "A rank's rows of a batch, and what the sum of their losses is divided by."
    rows: Packed
    count: float

    def to(self, device) -> "Share":
        "The same on the device."
        return Share(self.rows.rows(slice(None), device), self.count)

class Rows:
    "Batches of packed rows; each is a function of the seed and the step alone."

    def __init__(
        self,
        packed: dict,  # task -> Packed
        shares: dict,  # task -> share of the examples
        batch_size: int,  # rows a step, of all ranks together
        seed: int = 0,
    ):
        per_example = {task: len(p) / len(p.places) for task, p in packed.items()}  # rows
        weight = {task: share * per_example[task] for task, share in shares.items()}
        self.proportions = {task: w / sum(weight.values()) for task, w in weight.items()}  # of all rows
        self.mixture = Mixture({task: len(p) for task, p in packed.items()}, self.proportions, seed)
        self.packed, self.batch_size = packed, batch_size

    def whole(self, step: int) -> Packed:
        "The batch of all ranks."
        first, names = step * self.batch_size, ("tokens", "targets", "answers", "documents")
        tasks, numbers = (part.tolist() for part in self.mixture.rows(first, first + self.batch_size))
        rows = [self.packed[self.mixture.names[task]].rows([n]) for task, n in zip(tasks, numbers)]
        return Packed(*(torch.cat([getattr(row, name) for row in rows]) for name in names), [])

def loss_of_answers(
    model: nn.Module,
    batch: Share,
    precision: str = "float32",
) -> Tensor:  # scalar
    "The cross-entropy of the answers' tokens, divided by what the batch says."
    rows = batch.rows
    narrow = torch.autocast(rows.tokens.device.type, torch.bfloat16, enabled=precision == "bfloat16")
    with narrow: logits = model(rows.tokens)
    return answer_loss(logits, rows.targets, rows.answers, batch.count)


class AnswerStep(Step):
    "A training step on packed examples that do not see each other."

    def __init__(self, model: nn.Module, recipe: Recipe):
        super().__init__(model, recipe, loss_of_answers)

    def __call__(self, batch: Share, lr: float) -> tuple[float, float]:
        batch = batch.to(self.device)
        with apart(self.model, batch.rows.documents): return super().__call__(batch, lr)

def batch_of_rank(
    self,
    step: int,  # from 0
    rank: int = 0,
    size: int = 1,  # so many ranks share the batch
) -> Share:
    "This rank's rows, and the divisor that makes the mean over ranks the mean over all answers."
    if self.batch_size % size:
        raise UserError(f"{self.batch_size} rows cannot be shared evenly by {size} processes: choose a batch"
                        " size that is a multiple.")
    whole, n = self.whole(step), self.batch_size // size
    return Share(whole.rows(slice(rank * n, rank * n + n)), max(1, whole.answers.sum().item()) / size)

Rows.batch = batch_of_rank

def read_tokenizer(path, vocab_size: int):
    "The tokenizer of the weights, or the file named. Raises `UserError` if the model has other tokens."
    tokenizer = Tokenizer.load(path) if Path(path).suffix == ".model" else load_tokenizer(path)
    if tokenizer.vocab_size == vocab_size: return tokenizer
    raise UserError(f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}: it is"
                    " that of another model.")

def place(checkpoint: Checkpoint, mesh, device, lora: int = 0, **spread) -> Llama:
    "The model on the mesh, without its weights."
    if lora and mesh["tensor"].size() > 1:
        raise UserError("--lora and --tensor-parallel do not go together: leave out the second, since FSDP"
                        " shards the frozen weights, too.")

    def adapted(model):
        if lora: add_lora(model, lora)
        return parallelize(model, mesh, **spread)

    return build(checkpoint.config, adapted, device)


def fill(model: Llama, checkpoint: Checkpoint, seed: int = 0):
    "Reads the weights; every rank reads all of them, a matrix at a time, and keeps its share."
    random = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        whole = torch.zeros(p.shape)
        if name.endswith(".a"): whole.normal_(std=p.shape[1] ** -0.5, generator=random)
        elif not name.endswith(".b"): checkpoint.sources[name.replace(".linear.", ".")].read(whole)
        set_parameter(model, name, whole)

def merged(model: Llama) -> Iterator[tuple[str, Tensor]]:
    "The parameters under a Llama's names, each LoRA folded in; all ranks must take part."
    thin = {}
    for name, whole in whole_tensors(model):
        owner, last = name.rsplit(".", 1)
        if last in ("a", "b"): thin[last] = whole  # they come before their matrix
        elif owner.endswith(".linear"):
            owner = owner.removesuffix(".linear")
            yield f"{owner}.weight", whole + model.get_submodule(owner).scale * thin["b"] @ thin["a"]
        else: yield name, whole

def save_adapter(model: Llama, folder):
    "Writes `adapter.safetensors`: what LoRA has learnt, by the names of chapter 29."
    tensors = {name: t.contiguous() for name, t in whole_tensors(model) if name.endswith((".a", ".b"))}
    if dist.is_initialized() and dist.get_rank(): return
    with atomic_write(Path(folder) / "adapter.safetensors") as file:
        file.write(safetensors.torch.save(tensors))


@torch.no_grad()
def load_adapter(model: Llama, path) -> Llama:
    "The model that the adapter was trained on, with it. Raises `UserError` if they do not fit."
    tensors = safetensors.torch.load_file(path)
    rank = max((t.size(0) for name, t in tensors.items() if name.endswith(".a")), default=1)
    own = dict(lora_state(add_lora(model, rank)))
    if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in tensors.items()}:
        raise UserError(f"{path} is of another model: its matrices have other names or shapes.")
    for name, t in tensors.items(): own[name].copy_(t)
    return model

@dataclass(frozen=True)
class Settings:
    "What a finetuning is told."
    weights: Path  # a run folder, a GGUF file, or a folder of Meta's or Hugging Face's
    out: Path  # the run's folder
    data: tuple = ()  # files of JSON lines
    tasks: str | None = None  # "own": the generated tasks of chapter 29, too
    steps: int | None = None  # None: as many as the epochs need
    epochs: float = 1.0  # times that the rows are read
    lr: float | None = None  # the peak; None: 2e-4 with LoRA, 2e-5 without
    lora: int = 0  # the rank of LoRA's matrices; 0: all weights are trained
    batch_size: int = 8  # rows a step, of all ranks together
    seq_len: int | None = None  # T, tokens a row; None: 512, or the model's context where that is shorter
    warmup: int | None = None  # steps until the peak; None: a twentieth of all
    seed: int = 0  # order of the rows, LoRA's first weights
    cap: float = math.inf  # a task counts as no larger than so many examples
    too_long: str = "drop"  # or cut: examples that no row can hold
    tokenizer: Path | None = None  # None: that of the weights
    precision: str = "float32"  # or bfloat16
    checkpointing: str = "none"  # full, selective (chapter 13)
    tensor_parallel: int = 1  # ranks that share each matrix
    save_every: int = 20  # steps
    non_finite: str = "stop"  # or skip
    tensorboard: bool = False
    def __post_init__(self): check_settings(self)

def check_settings(s: Settings):
    "Raises `UserError` for a choice that there is not, and a number that cannot be."
    choices = {"too_long": ("drop", "cut"), "non_finite": ("stop", "skip"), "tasks": (None, "own"),
               "precision": ("float32", "bfloat16"), "checkpointing": ("none", "full", "selective")}
    for name, known in choices.items():
        if getattr(s, name) not in known:
            words = " or ".join(filter(None, known))
            raise UserError(f"--{name.replace('_', '-')} {getattr(s, name)}: choose {words}.")
    for name in ("steps", "epochs", "lr", "batch_size", "seq_len", "cap", "save_every"):
        value = getattr(s, name)
        if value is None or 0 < value < math.inf or value == math.inf and name == "cap": continue
        raise UserError(f"--{name.replace('_', '-')} {value}: give a number above 0.")
    if s.lora < 0: raise UserError(f"--lora {s.lora}: give a rank, such as 8, or 0 for none.")
    if not s.data and not s.tasks:
        raise UserError("there is nothing to learn from: give --data or --tasks.")

def own_tasks(seed: int) -> dict:  # task -> conversations
    "The generated tasks of chapter 29, without the instructions that it holds out."
    found = {}
    for task in TASKS:
        examples, _ = make_examples(task, 600, seed)  # one of the tasks has only 720 instructions
        found[task] = [conversation({"instruction": e.instruction, "answer": e.answer}, task)
                       for e in examples if not is_held_out(e)]
    return found


def gather_examples(s: Settings) -> dict:  # task -> conversations
    "The examples of all files, and the generated ones."
    found = own_tasks(s.seed) if s.tasks else {}
    for path in s.data:
        for task, talks in read_conversations(path).items(): found.setdefault(task, []).extend(talks)
    return found

def make_rows(s: Settings, tokenizer, template) -> tuple[Rows, dict]:  # and what is said of them
    "The packed rows. Raises `UserError` if no example fits into one."
    packed, lost = {}, [0, 0]
    talks = gather_examples(s)
    for task, conversations in talks.items():
        encoded = [e for m in conversations for e in encode_turns(tokenizer, m, template)]
        kept, *changed = fitting(encoded, s.seq_len, s.too_long)
        lost = [a + b for a, b in zip(lost, changed)]
        if kept: packed[task] = pack(kept, s.seq_len)
    if not packed:
        raise UserError(f"no example fits into a row of {s.seq_len} tokens: give a larger --seq-len.")
    shares = mixture({task: len(p.places) for task, p in packed.items()}, s.cap)
    return Rows(packed, shares, s.batch_size, s.seed), {
        "examples": sum(len(p.places) for p in packed.values()), "dropped": lost[0], "cut": lost[1],
        "rows": sum(map(len, packed.values())),
        "answer_tokens": sum(p.answers.sum().item() for p in packed.values())}

def recipe_of(s: Settings, rows: Rows, n_rows: int) -> Recipe:
    "The recipe, in which epochs have become steps."
    steps = s.steps or max(1, math.ceil(s.epochs * n_rows / s.batch_size))
    warmup = max(1, steps // 20) if s.warmup is None else s.warmup
    lr = s.lr or (2e-4 if s.lora else 2e-5)
    return Recipe(steps, rows.proportions, s.batch_size, s.seq_len, lr, warmup, weight_decay=0.0, seed=s.seed,
                  precision=s.precision)

def identity_of(model: Llama, checkpoint: Checkpoint, rows: Rows, recipe: Recipe, lora: int) -> dict:
    "What a checkpoint of this run must agree with."
    text, weights = hashlib.sha256(), hashlib.sha256()
    for task in rows.mixture.names:
        p = rows.packed[task]
        for part in (p.tokens, p.targets, p.answers, p.documents): text.update(part.numpy())
    for path in sorted({piece.path for source in checkpoint.sources.values() for piece in source.pieces}):
        weights.update(samples_of(path))
    return run_identity(model, {}, recipe) | {
        "text": text.hexdigest()[:16], "weights": weights.hexdigest()[:16], "lora": lora}


def samples_of(path: Path, n: int = 64, size: int = 2**16) -> bytes:
    "The file's length, and n samples of so many bytes, spread evenly over it."
    whole = path.stat().st_size
    with open(path, "rb") as file:
        parts = [(file.seek(max(0, whole - size) * i // (n - 1)), file.read(size))[1] for i in range(n)]
    return b"".join([str(whole).encode(), *parts])

def is_done(out: Path, identity: dict) -> bool:
    "Whether the run is finished. Raises `UserError` if the folder holds something else."
    if not (out / "run.json").is_file():
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise UserError(f"{out} holds other files and no run: choose another folder.")
        return False
    facts = RunFolder(out).facts
    if facts.identity is None or facts.kind not in (None, "finetune"):
        raise UserError(f"{out} holds a run that is no finetuning: choose another folder.")
    if other := differences(facts.identity, identity):
        raise UserError(f"{out} belongs to another run ({other}): go on as it began, or choose another"
                        " folder.")
    return (out / "model.safetensors").is_file()

def tune(s: Settings, checkpoint: Checkpoint, tokenizer, template, rows: Rows, n_rows: int):
    "The run on all ranks of the group, from its last checkpoint to its result. Raises `Stopped` at a signal."
    ranks, out, recipe = Ranks(mesh := make_mesh(s.tensor_parallel)), Path(s.out), recipe_of(s, rows, n_rows)
    model = place(checkpoint, mesh, ranks.device, s.lora, checkpointing=s.checkpointing,
                  precision=s.precision)
    identity, is_first = identity_of(model, checkpoint, rows, recipe, s.lora), dist.get_rank() == 0
    if is_done(out, identity): return
    with only_one(out) if is_first else nullcontext():
        if is_first:
            run = RunFolder(out)
            run.note(kind="finetune", identity=identity, template=template.name, weights=str(s.weights))
            run.note(tokenizer=save_tokenizer(tokenizer, out))
        fill(model, checkpoint, s.seed)
        step_of = AnswerStep(model, recipe)
        run_training(step_of, rows, out, identity, ranks=ranks, save_every=s.save_every,
                     non_finite=s.non_finite, tensorboard=s.tensorboard, locked=True)
        if s.lora: save_adapter(model, out)
        save_whole(merged(model), checkpoint.config, out, checkpoint.dtype)
        if is_first: shutil.rmtree(out / "checkpoints", ignore_errors=True)

def finetune(s: Settings) -> dict:  # what was learnt from, and the loss at both ends
    "Finetunes on the ranks that there are; the same call goes on. Raises `UserError`, `Stopped`."
    checkpoint, about = read_checkpoint(s.weights), Path(s.weights) / "run.json"
    checkpoint.check()
    s = replace(s, seq_len=s.seq_len or min(512, checkpoint.config.max_seq_len))
    if s.seq_len > (longest := checkpoint.config.max_seq_len):
        raise UserError(f"--seq-len {s.seq_len}: the longest context of {s.weights} is {longest}.")
    tokenizer = read_tokenizer(s.tokenizer or s.weights, checkpoint.config.vocab_size)
    before = read_json(about).get("template") if about.is_file() else None  # of an earlier finetuning
    template = choose_template(tokenizer, before)
    rows, facts = make_rows(s, tokenizer, template)
    if facts["dropped"] + facts["cut"] and int(os.environ.get("RANK", 0)) == 0:
        print(f"{facts['dropped']} examples dropped and {facts['cut']} cut: longer than a row of {s.seq_len}"
              " tokens.", file=sys.stderr)
    if alone := not dist.is_initialized(): join()
    try: tune(s, checkpoint, tokenizer, template, rows, facts["rows"])
    finally:
        if alone: dist.destroy_process_group()
    losses = [json.loads(line)["loss"] for line in open(Path(s.out) / "metrics.jsonl", encoding="utf-8")]
    return facts | {"steps": len(losses), "first_loss": losses[0], "last_loss": losses[-1]}

def in_words(out, result: dict) -> str:
    "What came out, and what to try."
    size = f"{result['examples']:,} examples, {result['answer_tokens']:,} answer tokens"
    first, last = ("none" if x is None else f"{x:.3f}"  # a step that was skipped has no loss
                   for x in (result["first_loss"], result["last_loss"]))
    losses = f"loss {first} to {last} in {result['steps']:,} steps"
    return f"{out} is done: {size}, {losses}.\nTry: llama-course chat --run {out}"

def option(kind, words):
    "The annotation of an option: its type, and what --help says of it."
    return Annotated[kind, typer.Option(help=words)]


def command(
    weights: option(Path, "A run folder, a GGUF file, or a folder of Meta's or Hugging Face's."),
    out: option(Path, "The run's folder; all ranks must see it."),
    data: option(list[Path] | None, "JSON lines: instruction, input, answer; or messages.") = None,
    tasks: option(str | None, "own: the generated tasks of chapter 29.") = None,
    steps: option(int | None, "Training steps, in place of epochs.") = None,
    epochs: option(float, "Times that the examples are read.") = 1.0,
    lr: option(float | None, "The peak; 2e-5, or 2e-4 with LoRA, if left out.") = None,
    lora: option(int, "The rank of LoRA; 0 trains all weights.") = 0,
    batch_size: option(int, "Rows a step, of all ranks together.") = 8,
    seq_len: option(int | None, "Tokens a row; 512 if left out.") = None,
    seed: option(int, "Order of the rows, LoRA's first weights.") = 0,
    cap: option(float, "A task counts as no larger than so many examples.") = math.inf,
    too_long: option(str, "drop or cut: examples that no row can hold.") = "drop",
    tokenizer: option(Path | None, "If it is not with the weights.") = None,
    precision: option(str, "float32 or bfloat16.") = "float32",
    checkpointing: option(str, "none, full or selective.") = "none",
    tensor_parallel: option(int, "Ranks that share each matrix.") = 1,
    save_every: option(int, "Steps between checkpoints.") = 20,
    non_finite: option(str, "stop, or skip: at a loss that is no number.") = "stop",
    tensorboard: option(bool, "Write for TensorBoard, too.") = False,
):
    "Finetune a LLaMA on instructions; under torchrun, on many processes."
    told = locals() | {"data": tuple(data or ())}
    in_one_line("llama_course.launch.finetuning", lambda: finetune(Settings(**told)))

def main():
    "The command `python -m llama_course.launch.finetuning`."
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(command)
    app(prog_name="python -m llama_course.launch.finetuning")


if __name__ == "__main__" and "__file__" in globals(): main()  # not in this notebook
