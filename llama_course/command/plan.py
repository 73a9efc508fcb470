"The command plan."

import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from llama_course.command.output import Json, print_result
from llama_course.dryrun import compare, describe_dry_run
from llama_course.files.hugging_face import hugging_face_config
from llama_course.files.plan import RunPlan, write_plan
from llama_course.model import LlamaConfig
from llama_course.planner import GPU, GPUS, GPTConfig, Layout, Planning, is_gpt, plan, shape_of
from llama_course.support.disk import read_json
from llama_course.support.errors import UserError
from llama_course.support.options import from_dict, option, options

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Take one step of the real code with shapes alone, and count."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the plan here, for `python -m llama_course.launch --plan`."),
]


@options
class ModelNumbers:
    "A model by its numbers, or what differs from the named one."

    dim: int | None = option(None, "D, the model's width; with --layers and --heads a model.", ge=1)
    layers: int | None = option(None, "L, its layers.", ge=1)
    heads: int | None = option(None, "H, its query heads.", ge=1)
    kv_heads: int | None = option(None, "K, its key and value heads; H if left out.", ge=1)
    head_dim: int | None = option(None, "Q, the width of a head; D/H if left out.", ge=2)
    vocab_size: int | None = option(None, "V, its vocabulary.", ge=1)
    hidden_dim: int | None = option(None, "F, the width of its feed-forward part.", ge=1)
    tie: bool | None = option(None, "One matrix for both ends of the model.")
    feed_forward: Literal["swiglu", "gelu"] | None = option(
        None, "swiglu, or gelu: a GPT's layer, to predict but not to train."
    )


def plan_command(
    asked: Planning,
    numbers: ModelNumbers,
    out: Out = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    "Say what a run needs: memory, days, money, carbon; and how to spread it."
    if dry_run and asked.compiled:
        raise UserError("a dry run has no compiled code: leave out --compiled or --dry-run.")
    asked = replace(asked, model=the_model(asked.model, numbers), gpu=the_gpu(asked.gpu))
    config = shape_of(asked.model) if isinstance(asked.model, str) else asked.model
    if (dry_run or out) and is_gpt(config):
        raise UserError(
            "a GPT (--feed-forward gelu) can be planned but not run: leave out --out and --dry-run."
        )
    config = replace(config, max_seq_len=max(asked.seq_len, config.max_seq_len))
    result = plan(asked)
    text = plan_lines(result)
    if dry_run:
        layout = Layout(**result["layout"])
        result["dry_run"] = compare(config, layout, asked.seq_len)
        text += "\n" + describe_dry_run(result["dry_run"])
    if out:
        write_plan(run_plan(asked, result), out)
    print_result(result, as_json, text)


def the_model(
    name: str | LlamaConfig,  # of a model, or a path to config.json or its folder
    numbers: ModelNumbers,
) -> str | LlamaConfig:
    "The name where nothing differs, else the configuration. Raises `UserError`."
    ours = {"layers": "n_layers", "heads": "n_heads", "kv_heads": "n_kv_heads"}
    ours |= {"tie": "tie_embeddings"}
    given = {ours.get(k, k): v for k, v in asdict(numbers).items() if v is not None}
    gelu = given.pop("feed_forward", "swiglu") == "gelu"
    path = Path(name) if isinstance(name, str) else None
    if {"dim", "n_layers", "n_heads"} <= given.keys():
        return GPTConfig(**given) if gelu else LlamaConfig(**given)
    if path and (path.suffix == ".json" or path.is_dir()):
        config = read_shape(path / "config.json" if path.is_dir() else path)
    elif not given and not gelu:
        return name
    else:
        config = shape_of(name) if isinstance(name, str) else name
    if not given and not gelu:
        return config
    # what follows from other numbers is computed again
    follows = {"hidden_dim": None} if "dim" in given or gelu else {}
    if {"dim", "n_heads"} & given.keys():
        follows["head_dim"] = None
    if "n_heads" in given and config.n_kv_heads == config.n_heads:
        follows["n_kv_heads"] = None
    kind = GPTConfig if gelu else type(config)
    return kind(**{k: getattr(config, k) for k in asdict(config)} | follows | given)


_GPT_FIELDS: dict[str, dict[str, str]] = {  # model_type -> our name: theirs
    "mpt": {"dim": "d_model", "n_layers": "n_layers", "n_heads": "n_heads"},
    "gpt2": {"dim": "n_embd", "n_layers": "n_layer", "n_heads": "n_head", "hidden_dim": "n_inner"},
    "gpt_neox": {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size",
    },
}


def read_shape(path: Path) -> LlamaConfig:
    "The shape in a config.json, of a LLaMA or a GPT. Raises `UserError`."
    settings: Any = read_json(path)
    if not isinstance(settings, dict):
        raise UserError(f"{path} is not a model's configuration.")
    if str(settings.get("format", "")).startswith("llama_course"):
        fields = {k: v for k, v in settings.items() if k in LlamaConfig.__dataclass_fields__}
        return from_dict(LlamaConfig, fields, str(path))
    theirs = _GPT_FIELDS.get(str(settings.get("model_type")))
    if theirs is None:
        return hugging_face_config(settings, path)
    found = {our: settings.get(their) for our, their in theirs.items()}
    found |= {"vocab_size": settings.get("vocab_size")}
    return from_dict(GPTConfig, {k: v for k, v in found.items() if v is not None}, str(path))


def the_gpu(
    name: str | GPU,  # of the list, a TOML file, or TOML: 'like = "H100-80GB", watts = 500'
) -> GPU:
    "The GPU that is meant. Raises `UserError`."
    if isinstance(name, GPU):
        return name
    if name in GPUS:
        return GPUS[name]
    path = Path(name)
    if path.suffix != ".toml" and "=" not in name:
        raise UserError(
            f"no GPU is called {name!r}: choose one of {', '.join(GPUS)}, or describe it in TOML."
        )
    where = str(path) if path.suffix == ".toml" else "--gpu"
    try:
        text = path.read_text(encoding="utf-8") if path.suffix == ".toml" else name
        values = tomllib.loads(text if path.suffix == ".toml" else f"gpu = {{{text}}}")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"{where} is not TOML: {error}.") from None
    values = values if path.suffix == ".toml" else values["gpu"]
    like = values.pop("like", None)
    if like is not None and like not in GPUS:
        raise UserError(f"{where}: no GPU is called {like!r}: choose one of {', '.join(GPUS)}.")
    base = asdict(GPUS[like]) if like else {}
    if base and "watts" in values and "full_watts" not in values:
        base["full_watts"] = base["full_watts"] or base["watts"]  # a cap, not another card
    return from_dict(GPU, base | {"name": like or "own GPU"} | values, where)


def run_plan(
    asked: Planning,
    result: dict,  # of `plan`
) -> RunPlan:
    "The plan as the trainer takes it."
    config = shape_of(asked.model) if isinstance(asked.model, str) else asked.model
    return RunPlan(
        model=replace(config, max_seq_len=max(asked.seq_len, config.max_seq_len)),
        gpu=result["gpu"],
        gpus=asked.gpus,
        seq_len=asked.seq_len,
        steps=result["steps"],
        compile=asked.compiled,
        expected_memory_gib=result["memory_gib"],
        expected_seconds=result["seconds"],
        **result["layout"],
    )


def plan_lines(
    result: dict,  # of `plan`
    most: int = 6,  # of the layouts that were not chosen
) -> str:
    "A plan as a page of text."
    r, layout, seconds = result, result["layout"], result["seconds"]
    share = {part: s / sum(seconds.values()) for part, s in seconds.items()}
    gib, need = r["memory_gib"], sum(r["memory_gib"].values())
    unit, scale = ("GiB", 1) if need >= 0.1 else ("MiB", 1024)
    lines = [
        f"{_short(r['parameters'])} parameters, {_short(r['tokens'])} tokens,"
        f" {r['gpus']} x {r['gpu']}",
        f"  {_duration(r['days'])}, {r['tokens_per_second_per_gpu']:,.0f} tokens per second per"
        f" GPU, MFU {r['mfu']:.1%}",
        f"  {r['gpu_hours']:,.{0 if r['gpu_hours'] >= 10 else 3}f} GPU-hours,"
        f" ${r['cost_dollars']:,.{0 if r['cost_dollars'] >= 10 else 2}f},"
        f" {r['mwh']:,.4g} MWh, {r['tco2e']:,.4g} tCO2e",
        f"  {r['steps']:,} steps of {r['batch']:,} x {r['seq_len']:,} tokens",
        "layout: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in layout.items()),
        f"memory: {scale * need:.1f} {unit} of {scale * r['memory_limit_gib']:,.1f}"
        f"{' (tight: the allocator may not find room)' if r['tight'] else ''}: "
        + ", ".join(f"{part} {scale * size:.1f}" for part, size in gib.items()),
        "time: " + ", ".join(f"{part} {s:.0%}" for part, s in share.items() if s >= 0.005),
    ]
    if r["others"] and most:
        lines.append("not chosen:")
    for other in r["others"][:most]:
        o = other["layout"]
        kind = f"tensor {o['tensor']}{'' if o['sequence'] else ', no sequence'}"
        lines.append(
            f"  {kind}, {o['checkpointing']}, micro-batch {o['micro_batch']}: {other['why']}"
        )
    return "\n".join(lines)


def _short(number: float) -> str:
    "Three digits and a letter: 65.3B."
    for letter, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _duration(days: float) -> str:
    "In days, or in the unit that makes it more than one."
    for unit, size in (("days", 1), ("hours", 24), ("minutes", 1440)):
        if days * size >= 1:
            return f"{days * size:.1f} {unit}"
    return f"{days * 86400:.1f} seconds"
