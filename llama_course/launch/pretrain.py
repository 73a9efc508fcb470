"Pretraining on token shards, on one process or on many: `python -m llama_course.launch`."

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from llama_course import __version__
from llama_course.attention import use_attention
from llama_course.corpus.build import prepared
from llama_course.fault_tolerance import Ranks, build, draw_weights
from llama_course.files.run import RunFolder
from llama_course.launch.machine import machine
from llama_course.launch.ranks import in_one_line, run_command
from llama_course.launch.run import run_identity, run_training
from llama_course.launch.weights import save_whole, whole_tensors
from llama_course.model import LlamaConfig
from llama_course.parallel import make_mesh, parallelize
from llama_course.support.compare import differences
from llama_course.support.disk import atomic_write, fingerprint, only_one, read_json
from llama_course.support.errors import UserError
from llama_course.support.options import option, options
from llama_course.support.shards import Shard
from llama_course.training import Recipe, Step, make_loader

HELD_OUT_SUFFIXES = [".held_out", ".tokens"]  # how the name of a shard ends that nobody trains on


@options
class FullScaleRecipe(Recipe):
    "The recipe of chapter 15, with the paper's schedule where nothing else is said."

    lr: float = option(3e-4, "the peak of the learning rate", gt=0)
    warmup: int = option(2000, "steps until the peak", ge=0)


@options
class Pretraining:
    "What `python -m llama_course.launch` is told beside the recipe."

    model: str = option(help="a model by name: demo, pocket, 7B, 13B, 33B, 65B")
    data: Path = option(help="what `llama-course data` wrote, or a folder of SOURCE.tokens")
    run_folder: Path = option(help="the run's folder; all ranks must see it")
    tensor_parallel: int = option(1, "ranks that share each matrix", ge=1)
    sequence_parallel: bool = option(True, "divide what is between the matrices by position")
    save_every: int = option(100, "steps between checkpoints", ge=1)
    non_finite: Literal["stop", "skip"] = option("stop", "at a loss that is no number")
    tensorboard: bool = option(False, "write for TensorBoard, too", flag=True)


def open_data(
    folder: Path,  # what `llama-course data` wrote, its folder of tokens, or any SOURCE.tokens
) -> tuple[dict[str, Shard], dict[str, float], Path | None]:
    """The shards to train on, each source's share, and the tokenizer's file if there is one.

    Shares are those of the data's recipe, or of mixture.json, or by size. Held-out shards are left
    alone.
    Raises `UserError` where there is nothing to read.
    """
    root = folder.parent if folder.name == "tokens" and prepared(folder.parent) else folder
    about = prepared(root)
    tokens = root / "tokens" if about else folder
    files = [path for path in sorted(tokens.glob("*.tokens")) if path.suffixes != HELD_OUT_SUFFIXES]
    shards = {
        path.name.removesuffix(".tokens").removesuffix(".train"): Shard(path) for path in files
    }
    if not shards:
        raise UserError(
            f"{folder} has no files *.tokens: `llama-course data` with a tokenizer in its recipe"
            " makes them."
        )
    mixture = tokens / "mixture.json"
    if about:
        shares = {name: float(source["proportion"]) for name, source in about["sources"].items()}
    elif mixture.exists():
        shares = read_json(mixture)
    else:
        total = sum(len(shard.tokens) for shard in shards.values())
        shares = {name: len(shard.tokens) / total for name, shard in shards.items()}
    model = root / "tokenizer.model"
    return shards, shares, model if model.is_file() else None


def pretrain(recipe: Recipe, settings: Pretraining) -> None:
    "Trains on all ranks of the group, and leaves a run folder. Raises `UserError`, `Stopped`."
    s, ranks = settings, Ranks(mesh := make_mesh(settings.tensor_parallel))
    shards, shares, tokenizer = open_data(s.data)
    vocab_size = next(iter(shards.values())).vocab_size
    config = LlamaConfig.from_name(s.model, vocab_size=vocab_size)
    config = replace(config, max_seq_len=max(recipe.seq_len, config.max_seq_len))
    recipe = replace(recipe, proportions=shares)
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
    step_of = Step(model, plain)
    identity = run_identity(model, shards, recipe)
    with only_one(run.path) if ranks.is_first else nullcontext():
        if ranks.is_first:
            begin_folder(run, s, recipe, identity, tokenizer)
        run_training(
            step_of,
            make_loader(shards, recipe),
            run.path,
            identity,
            ranks=ranks,
            first_weights=lambda: draw_weights(model, recipe.seed),
            save_every=s.save_every,
            non_finite=s.non_finite,
            tensorboard=s.tensorboard,
            locked=True,
        )
        if not is_done:
            save_whole(whole_tensors(model), config, run.path)


def begin_folder(
    run: RunFolder, settings: Pretraining, recipe: Recipe, identity: dict, tokenizer: Path | None
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
        settings={name: _plain(value) for name, value in asdict(settings).items()},
        tokenizer=print_of_tokenizer,
        recipe=asdict(recipe),
        identity=identity,
        machine=machine(try_compiler=False),
    )


def _plain(value):
    return str(value) if isinstance(value, Path) else value


def launch_command() -> None:
    "The command `python -m llama_course.launch`."
    name = "llama_course.launch"

    def command(recipe: FullScaleRecipe, settings: Pretraining) -> None:
        "Pretrain a LLaMA on token shards; under torchrun, on many processes."
        in_one_line(name, lambda: pretrain(recipe, settings))

    run_command(name, command)
