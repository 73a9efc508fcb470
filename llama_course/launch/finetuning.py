"Finetuning: any model, your own examples, one process or many, in a run folder like any other."

import hashlib
import math
import shutil
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from llama_course import __version__
from llama_course.fault_tolerance import Ranks
from llama_course.files.adapter import save_adapter
from llama_course.files.checkpoint import Checkpoint
from llama_course.files.load import load_tokenizer, read_checkpoint
from llama_course.files.run import RunFolder
from llama_course.files.tokenizers import fit_vocabulary, save_tokenizer
from llama_course.instruct import (
    Packed,
    PackedLoader,
    Template,
    mixture,
    pack_examples,
    packed_loss,
    row_shares,
)
from llama_course.launch.conversations import (
    Conversation,
    encode_turns,
    fitting,
    generated_conversations,
    read_conversations,
)
from llama_course.launch.machine import machine
from llama_course.launch.ranks import in_one_line, is_first_process, join, run_command
from llama_course.launch.run import run_identity, run_training
from llama_course.launch.sharded import fill_weights, merged_tensors, place_model
from llama_course.launch.templates import choose_template
from llama_course.launch.weights import save_whole, whole_tensors
from llama_course.model import Llama
from llama_course.parallel import make_mesh
from llama_course.support.compare import differences
from llama_course.support.disk import only_one
from llama_course.support.errors import UserError
from llama_course.support.options import option, options
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, Step

MODULE = "llama_course.launch.finetuning"


@options
class Finetuning:
    "What a finetuning is asked for."

    weights: Path = option(
        help="A run folder, a GGUF file, or a folder of Meta's or Hugging Face's."
    )
    out: Path = option(help="The run's folder; all ranks must see it.")
    data: tuple[Path, ...] = option(
        (), "JSON lines: instruction, input, answer; messages; prompt, completion; ShareGPT."
    )
    tasks: Literal["own"] | None = option(None, "own: the generated tasks of chapter 29.")
    steps: int | None = option(None, "Training steps, in place of epochs.", ge=1)
    epochs: float = option(1.0, "Times that the examples are read.", gt=0)
    lr: float | None = option(None, "The peak; 2e-5, or 2e-4 with LoRA, if left out.", gt=0)
    lora: int = option(0, "The rank of LoRA; 0 trains all weights.", ge=0)
    batch_size: int = option(8, "Rows of examples per step, of all ranks together.", ge=1)
    seq_len: int | None = option(
        None, "Tokens per row; 512 if left out, or the model's context.", ge=1
    )
    warmup: int | None = option(None, "Steps until the peak; a twentieth of all if left out.", ge=0)
    seed: int = option(0, "Order of the rows, LoRA's first weights.", ge=0, lt=2**63)
    cap: float = option(
        math.inf, "A task counts as no larger than so many examples.", gt=0, inf=True
    )
    too_long: Literal["drop", "cut"] = option("drop", "drop or cut: examples that no row can hold.")
    tokenizer: Path | None = option(None, "If it is not with the weights.")
    precision: Literal["float32", "bfloat16"] = option(
        "float32", "float32 or bfloat16: of matrix products."
    )
    checkpointing: Literal["none", "full", "selective"] = option(
        "none", "none, full or selective: of activations."
    )
    tensor_parallel: int = option(1, "Ranks that share each matrix.", ge=1)
    save_every: int = option(20, "Steps between checkpoints.", ge=1)
    non_finite: Literal["stop", "skip"] = option(
        "stop", "stop or skip, at a loss that is no number."
    )
    tensorboard: bool = option(False, "Write for TensorBoard, too.", flag=True)


@dataclass(frozen=True)
class TuningData:
    "What is learned from, as packed rows."

    loader: PackedLoader
    shares: dict[str, float]  # task -> share of the rows
    rows: int
    examples: int
    answer_tokens: int
    dropped: int  # examples that no row can hold
    cut: int


def gather_conversations(s: Finetuning) -> dict[str, list[Conversation]]:  # by task
    "The examples of all files, and the generated ones. Raises `UserError` where there are none."
    if not s.data and not s.tasks:
        raise UserError("there is nothing to learn from: give --data or --tasks.")
    found = generated_conversations(s.seed) if s.tasks else {}
    for path in s.data:
        for task, conversations in read_conversations(path, _say).items():
            found.setdefault(task, []).extend(conversations)
    return found


def _say(line: str) -> None:
    "One line on standard error, from the first of the ranks."
    if is_first_process():
        print(line, file=sys.stderr)


def pack_data(s: Finetuning, seq_len: int, tokenizer: Any, template: Template) -> TuningData:
    "The packed rows. Raises `UserError` if no example fits into one."
    packed: dict[str, Packed] = {}
    dropped = cut = 0
    for task, conversations in gather_conversations(s).items():
        encoded = [e for c in conversations for e in encode_turns(tokenizer, c, template)]
        kept, n_dropped, n_cut = fitting(encoded, seq_len, s.too_long)
        dropped, cut = dropped + n_dropped, cut + n_cut
        if kept:
            packed[task] = pack_examples(kept, seq_len)
    if not packed:
        raise UserError(f"no example fits into a row of {seq_len} tokens: give a larger --seq-len.")
    sizes = {task: len(p.places) for task, p in packed.items()}
    shares = row_shares(packed, mixture(sizes, s.cap))
    return TuningData(
        PackedLoader(packed, shares, s.batch_size, s.seed),
        shares,
        rows=sum(map(len, packed.values())),
        examples=sum(sizes.values()),
        answer_tokens=sum(int(p.answers.sum()) for p in packed.values()),
        dropped=dropped,
        cut=cut,
    )


def tuning_recipe(s: Finetuning, seq_len: int, data: TuningData) -> Recipe:
    "The recipe, in which epochs have become steps."
    steps = s.steps or max(1, math.ceil(s.epochs * data.rows / s.batch_size))
    return Recipe(
        steps=steps,
        proportions=data.shares,
        batch_size=s.batch_size,
        seq_len=seq_len,
        lr=s.lr or (2e-4 if s.lora else 2e-5),
        warmup=max(1, steps // 20) if s.warmup is None else s.warmup,
        weight_decay=0.0,
        seed=s.seed,
        precision=s.precision,
    )


def tuning_identity(
    model: Llama, checkpoint: Checkpoint, loader: PackedLoader, recipe: Recipe, lora: int
) -> dict[str, Any]:
    "What a checkpoint of this run must agree with: recipe, shapes, rows, first weights."
    text, weights = hashlib.sha256(), hashlib.sha256()
    for task in loader.mixture.names:
        p = loader.packed[task]
        for part in (p.tokens, p.targets, p.answers, p.documents):
            text.update(part.numpy())
    paths = {piece.path for source in checkpoint.sources.values() for piece in source.pieces}
    for path in sorted(paths):
        weights.update(file_samples(path))
    return run_identity(model, {}, recipe) | {
        "text": text.hexdigest()[:16],
        "weights": weights.hexdigest()[:16],
        "lora": lora,
    }


def file_samples(path: Path, n: int = 64, size: int = 2**16) -> bytes:
    """The file's length, and n samples of so many bytes, spread evenly over it.

    130 GB are not read twice to compare them; and the beginning alone, the embeddings, is often
    what a finetuning has left as it was.
    """
    length = path.stat().st_size
    found = [str(length).encode()]
    with open(path, "rb") as file:
        for i in range(n):
            file.seek(max(0, length - size) * i // (n - 1))
            found.append(file.read(size))
    return b"".join(found)


def read_tokenizer(path: Path, vocab_size: int) -> Any:
    "The tokenizer of the weights, or the file named. Raises `UserError` if it does not fit."
    tokenizer = Tokenizer.load(path) if path.suffix == ".model" else load_tokenizer(path)
    fit_vocabulary(tokenizer, vocab_size, "the model")
    return tokenizer


def run_finetuning(s: Finetuning) -> dict[str, Any]:  # what was learned from; the loss at both ends
    "Finetunes on the ranks that there are; the same call goes on. Raises `UserError`, `Stopped`."
    checkpoint = read_checkpoint(s.weights)
    checkpoint.check()
    longest = checkpoint.config.max_seq_len
    seq_len = s.seq_len or min(512, longest)
    if seq_len > longest:
        raise UserError(f"--seq-len {seq_len}: the longest context of {s.weights} is {longest}.")
    tokenizer = read_tokenizer(s.tokenizer or s.weights, checkpoint.config.vocab_size)
    template = choose_template(tokenizer, RunFolder(s.weights).facts.template)
    data = pack_data(s, seq_len, tokenizer, template)
    if data.dropped + data.cut:
        _say(
            f"{data.dropped} examples dropped and {data.cut} cut: longer than a row of {seq_len}"
            " tokens."
        )
    recipe = tuning_recipe(s, seq_len, data)
    if alone := not dist.is_initialized():
        join()
    try:
        _tune(s, checkpoint, tokenizer, template, data.loader, recipe)
    finally:
        if alone:
            dist.destroy_process_group()
    losses = [None if math.isnan(x) else x for x in RunFolder(s.out).metrics()["loss"].tolist()]
    counted = ("examples", "dropped", "cut", "rows", "answer_tokens")
    return {name: getattr(data, name) for name in counted} | {
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def _tune(
    s: Finetuning,
    checkpoint: Checkpoint,
    tokenizer: Any,
    template: Template,
    loader: PackedLoader,
    recipe: Recipe,
) -> None:
    "The run on all ranks of the group, from its last checkpoint to its result."
    ranks = Ranks(mesh := make_mesh(s.tensor_parallel))
    model = place_model(
        checkpoint,
        mesh,
        ranks.device,
        s.lora,
        checkpointing=s.checkpointing,
        precision=s.precision,
        whole_logits=True,  # the loss picks those of the answers
    )
    identity = tuning_identity(model, checkpoint, loader, recipe, s.lora)
    run = RunFolder(s.out)
    check_same_run(run, identity)
    if run.is_done:
        return
    with only_one(run.path) if ranks.is_first else nullcontext():
        if ranks.is_first:
            settings = {n: _plain(v) for n, v in vars(s).items()}
            run.note(
                kind="finetune",
                version=__version__,
                settings=settings,
                weights=str(s.weights),
                template=template.name,
                tokenizer=save_tokenizer(tokenizer, run.path),
                recipe=asdict(recipe),
                identity=identity,
                machine=machine(try_compiler=False),
            )
        fill_weights(
            model, checkpoint, s.seed
        )  # checkpoints hold what is trained, and nothing else
        run_training(
            Step(model, recipe, packed_loss),
            loader,
            run.path,
            identity,
            ranks=ranks,
            save_every=s.save_every,
            non_finite=s.non_finite,
            boards=("tensorboard",) * s.tensorboard,
            locked=True,
        )
        if s.lora:
            save_adapter(whole_tensors(model), run.path / "adapter.safetensors", ranks.is_first)
        save_whole(merged_tensors(model), checkpoint.config, run.path, checkpoint.dtype)
        if ranks.is_first:
            shutil.rmtree(run.path / "checkpoints", ignore_errors=True)


def check_same_run(run: RunFolder, identity: dict[str, Any]) -> None:
    "Raises `UserError` if the folder holds something else than this run."
    run.check_free()
    if not run.exists:
        return
    if run.facts.kind not in ("finetune", None) or run.facts.identity is None:
        raise UserError(f"{run.path} holds a run that is no finetuning: choose another folder.")
    if other := differences(run.facts.identity, identity):
        raise UserError(
            f"{run.path} belongs to another run ({other}): go on as it began, or choose"
            " another folder."
        )


def _plain(value: Any) -> Any:
    "The value as JSON can hold it."
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) or value == math.inf else value


def report_of(out: Path, result: dict[str, Any]) -> str:
    "What came out, and what to try, in words."
    size = f"{result['examples']:,} examples, {result['answer_tokens']:,} answer tokens"
    first, last = (
        "none" if x is None else f"{x:.3f}"  # a step that was skipped has no loss
        for x in (result["first_loss"], result["last_loss"])
    )
    losses = f"loss {first} to {last} in {result['steps']:,} steps"
    there = f"llama-course export {out} --to gguf --out {out}-gguf"  # llama.cpp, ollama
    return f"{out} is done: {size}, {losses}.\nTry: llama-course chat --run {out}, or {there}"


def finetune_on_ranks(options: Finetuning) -> None:
    "Finetune a LLaMA on instructions; under torchrun, on many processes."
    in_one_line(MODULE, lambda: run_finetuning(options))


if __name__ == "__main__":
    run_command(MODULE, finetune_on_ranks)
