"Pretraining on token shards, on one process or on many: `python -m llama_course.launch`."

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

from llama_course import __version__
from llama_course.attention import use_attention
from llama_course.corpus.build import prepared
from llama_course.fault_tolerance import Ranks, build, draw_weights
from llama_course.files.plan import RunPlan, read_plan
from llama_course.files.run import RunFolder
from llama_course.launch.held_out import HeldOut
from llama_course.launch.machine import machine
from llama_course.launch.ranks import in_one_line, run_command
from llama_course.launch.run import run_identity, run_training
from llama_course.launch.weights import save_whole, whole_tensors
from llama_course.model import LlamaConfig
from llama_course.parallel import make_mesh, parallelize
from llama_course.report.page import report_of_run
from llama_course.support.compare import differences
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json
from llama_course.support.errors import UserError
from llama_course.support.options import option, options
from llama_course.support.shards import Shard
from llama_course.tokenizer import Tokenizer
from llama_course.training import Recipe, Step, make_loader


@options
class FullScaleRecipe(Recipe):
    "The recipe of chapter 15, with the paper's schedule where nothing else is said."

    lr: float = option(3e-4, "the peak of the learning rate", gt=0)
    warmup: int = option(2000, "steps until the peak", ge=0)


@options
class Pretraining:
    "What `python -m llama_course.launch` is told beside the recipe."

    data: Path = option(help="what `llama-course data` wrote, or a folder of SOURCE.tokens")
    run_folder: Path = option(help="the run's folder; all ranks must see it")
    model: str | None = option(None, "a model by name: demo, pocket, 7B, 13B, 33B, 65B")
    plan: Path | None = option(
        None, "what `llama-course plan --out` wrote; options beside it count more"
    )
    tensor_parallel: int = option(1, "ranks that share each matrix", ge=1)
    sequence_parallel: bool = option(True, "divide what is between the matrices by position")
    reduce: Literal["last", "each"] = option(
        "last",
        "micro-batch of a step after which gradients are summed over the ranks; last keeps 4 bytes"
        " per parameter on each rank until then",
    )
    save_every: int = option(100, "steps between checkpoints", ge=1)
    measure_every: int = option(1000, "steps between measurements of the held-out text", ge=1)
    non_finite: Literal["stop", "skip"] = option("stop", "at a loss that is no number")
    tensorboard: bool = option(False, "write for TensorBoard, too", flag=True)
    tracker: Literal["wandb", "mlflow"] | None = option(None, "send the log there, too")
    profile: bool = option(
        False, "leave a trace of two steps in the run's folder: trace/rank-0.json", flag=True
    )


class OpenedData(NamedTuple):
    "What a folder of token shards holds."

    train: dict[str, Shard]  # source -> shard
    held_out: dict[str, Shard]
    shares: dict[str, float]  # source -> share of what is read
    tokenizer: Path | None  # its file


def open_data(
    folder: Path,  # what `llama-course data` wrote, its folder of tokens, or any SOURCE.tokens
) -> OpenedData:
    """The shards, each source's share, and the tokenizer's file if there is one.

    Shares are those of the data's recipe, or of mixture.json, or by size. Of every shard the header
    is read: its length is compared with the file's, its checksum with that in data.json. The tokens
    are not read: `llama-course data --verify` does that, once. Raises `UserError` where there is
    nothing to train on, or a shard is not the one that data.json names.
    """
    root = folder.parent if folder.name == "tokens" and prepared(folder.parent) else folder
    about = prepared(root)
    tokens = root / "tokens" if about else folder
    sides: dict[str, dict[str, Shard]] = {"train": {}, "held_out": {}}
    for path in sorted(tokens.glob("*.tokens")):
        name, _, side = path.name.removesuffix(".tokens").rpartition(".")
        if side in sides:
            sides[side][name] = Shard(path)
        else:
            sides["train"][path.name.removesuffix(".tokens")] = Shard(path)
    shards = sides["train"]
    if not shards:
        raise UserError(
            f"{folder} has no files *.tokens: `llama-course data` with a tokenizer in its recipe"
            " makes them."
        )
    mixture = tokens / "mixture.json"
    if about:
        shares = {name: float(source["proportion"]) for name, source in about["sources"].items()}
        _check_named(root, about, sides)
    elif mixture.exists():
        shares = read_json(mixture)
    else:
        total = sum(len(shard.tokens) for shard in shards.values())
        shares = {name: len(shard.tokens) / total for name, shard in shards.items()}
    model = root / "tokenizer.model"
    return OpenedData(shards, sides["held_out"], shares, model if model.is_file() else None)


def _check_named(root: Path, about: dict, sides: dict[str, dict[str, Shard]]) -> None:
    "Raises `UserError` where data.json names another shard, or one that is not there."
    for source, facts in about["sources"].items():
        if source not in sides["train"]:
            raise UserError(f"{root} has no training shard of {source}: run `llama-course data`.")
        for file, named in facts.get("shards", {}).items():
            side = "held_out" if file.endswith(".held_out.tokens") else "train"
            shard = sides[side].get(source)
            if shard is None:
                raise UserError(f"{root} has no {file}, which its data.json names: restore it.")
            if named["sha256"] != shard.digest:
                raise UserError(
                    f"{shard.path} is not the shard that {root / 'data.json'} names: restore it, or"
                    " run `llama-course data` again."
                )


def pretrain(recipe: Recipe, settings: Pretraining) -> None:
    "Trains on all ranks of the group, and leaves a run folder. Raises `UserError`, `Stopped`."
    s, ranks = settings, Ranks(mesh := make_mesh(settings.tensor_parallel))
    data = open_data(s.data)
    vocab_size = next(iter(data.train.values())).vocab_size
    config = planned_config(s, vocab_size, ranks)
    config = replace(config, max_seq_len=max(recipe.seq_len, config.max_seq_len))
    recipe = replace(recipe, proportions=data.shares)
    run = RunFolder(s.run_folder)
    is_done = run.is_done  # before anybody begins, or the ranks would not agree

    def spread(model):
        if recipe.attention:
            use_attention(model, recipe.attention)
        return parallelize(
            model,
            mesh,
            checkpointing=recipe.checkpointing or "none",
            compile=recipe.compile,
            sequence=s.sequence_parallel,
            precision=recipe.precision,
        )

    model = build(config, spread, ranks.device)
    plain = replace(recipe, attention=None, checkpointing=None, compile=False)  # `spread` did it
    step_of = Step(model, plain, reduce=s.reduce)
    identity = run_identity(model, data.train, recipe)
    tokenizer = Tokenizer.load(data.tokenizer) if data.tokenizer else None
    own = recipe.batch_size // ranks.size
    rows = min(recipe.micro_batch or own, own) or 1
    held_out = HeldOut(data.held_out, tokenizer, recipe.seq_len, rows, ranks, recipe.precision)
    with only_one(run.path) if ranks.is_first else nullcontext():
        if ranks.is_first:
            begin_folder(run, s, recipe, config, identity, data.tokenizer, ranks.world)
        run_training(
            step_of,
            make_loader(data.train, recipe),
            run.path,
            identity,
            ranks=ranks,
            first_weights=lambda: draw_weights(model, recipe.seed),
            save_every=s.save_every,
            non_finite=s.non_finite,
            boards=("tensorboard",) * s.tensorboard + ((s.tracker,) if s.tracker else ()),
            held_out=held_out,
            measure_every=s.measure_every,
            profile=s.profile,
            locked=True,
        )
        if not is_done:
            save_whole(whole_tensors(model), config, run.path)
            if ranks.is_first:
                report_of_run(run.path)


def begin_folder(
    run: RunFolder,
    settings: Pretraining,
    recipe: Recipe,
    config: LlamaConfig,
    identity: dict,
    tokenizer: Path | None,
    ranks: int,  # processes
) -> None:
    "Writes run.json, copies the tokenizer. Raises `UserError` where the folder is another run's."
    run.check_free()
    if run.facts.identity and (other := differences(run.facts.identity, identity)):
        raise UserError(
            f"{run.path} belongs to another run ({other}): go on as it began, or choose another"
            " folder."
        )
    if run.exists:
        return
    print_of_tokenizer = None
    if tokenizer:
        with atomic_write(run.tokenizer) as file:
            file.write(tokenizer.read_bytes())
        print_of_tokenizer = fingerprint(run.tokenizer)
    run.note(
        kind="pretrain",
        version=__version__,
        settings={"ranks": ranks} | {n: _plain(value) for n, value in asdict(settings).items()},
        model=asdict(config),
        tokenizer=print_of_tokenizer,
        recipe=asdict(recipe),
        identity=identity,
        machine=machine(try_compiler=False),
    )


def _plain(value):
    return str(value.absolute()) if isinstance(value, Path) else value


def plan_words(plan: RunPlan) -> list[str]:
    "The plan as options of the command; they stand before the user's own, and the last one counts."
    told = {
        "steps": plan.steps,
        "batch-size": plan.batch_size,
        "micro-batch": plan.micro_batch,
        "seq-len": plan.seq_len,
        "checkpointing": plan.checkpointing,
        "precision": plan.precision,
        "tensor-parallel": plan.tensor,
        "reduce": "each",  # it counts on gradients that are spread over the ranks at all times
    }
    words = [word for name, value in told.items() for word in (f"--{name}", str(value))]
    words.append("--sequence-parallel" if plan.sequence else "--no-sequence-parallel")
    return words + ["--compile"] * plan.compile


def planned_config(s: Pretraining, vocab_size: int, ranks: Ranks) -> LlamaConfig:
    "The model's shape, by name or by plan. Raises `UserError` if this run was not planned so."
    if s.plan is None:
        if not s.model:
            raise UserError("--model is missing: give a name, or a --plan.")
        return LlamaConfig.from_name(s.model, vocab_size=vocab_size)
    if s.model:
        raise UserError("--model and --plan do not go together: the plan has its model.")
    plan = read_plan(s.plan)
    if plan.gpus != ranks.world:
        raise UserError(
            f"{s.plan} is for {plan.gpus} ranks, and here are {ranks.world}: plan again with"
            f" --gpus {ranks.world}, or leave --plan out and give the options."
        )
    if plan.model.vocab_size != vocab_size:
        raise UserError(
            f"{s.plan} is for a vocabulary of {plan.model.vocab_size} tokens, and that of {s.data}"
            f" has {vocab_size}: plan again with that of the data."
        )
    return plan.model


def launch_command() -> None:
    "The command `python -m llama_course.launch`."
    name = "llama_course.launch"

    def command(recipe: FullScaleRecipe, settings: Pretraining) -> None:
        "Pretrain a LLaMA on token shards; under torchrun, on many processes."
        in_one_line(name, lambda: pretrain(recipe, settings))

    run_command(name, command, _with_plan)


def _with_plan(words: list[str]) -> list[str]:
    "The words of the command line, after those of the plan that they name."
    for i, word in enumerate(words):
        path = words[i + 1] if word == "--plan" and i + 1 < len(words) else ""
        path = word.removeprefix("--plan=") if word.startswith("--plan=") else path
        if path:
            return plan_words(read_plan(path)) + words
    return words
