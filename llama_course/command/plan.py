"The command plan."

from pathlib import Path
from typing import Annotated

import typer

from llama_course.command.output import Json, print_result
from llama_course.dryrun import compare, describe_dry_run
from llama_course.files.plan import RunPlan, write_plan
from llama_course.model import LlamaConfig
from llama_course.planner import Layout, Planning, plan
from llama_course.support.errors import UserError

DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Take one step of the real code with shapes alone, and count."),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the plan here, for `python -m llama_course.launch --plan`."),
]


def plan_command(
    asked: Planning, out: Out = None, dry_run: DryRun = False, as_json: Json = False
) -> None:
    "Say what a run needs: memory, days, money, carbon; and how to spread it."
    if dry_run and asked.compiled:
        raise UserError("a dry run has no compiled code: leave out --compiled or --dry-run.")
    result = plan(asked)
    text = plan_lines(result)
    if dry_run:
        layout = Layout(**result["layout"])
        result["dry_run"] = compare(LlamaConfig.from_name(asked.model), layout)
        text += "\n" + describe_dry_run(result["dry_run"])
    if out:
        write_plan(run_plan(asked, result), out)
    print_result(result, as_json, text)


def run_plan(
    asked: Planning,
    result: dict,  # of `plan`
) -> RunPlan:
    "The plan as the trainer takes it."
    model = asked.model
    return RunPlan(
        model=LlamaConfig.from_name(model) if isinstance(model, str) else model,
        gpu=asked.gpu,
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
    lines = [
        f"{r['parameters'] / 1e9:.3g}B parameters, {r['tokens'] / 1e12:.3g}T tokens,"
        f" {r['gpus']} x {r['gpu']}",
        f"  {r['days']:.1f} days, {r['tokens_per_second_per_gpu']:,.0f} tokens per second and GPU,"
        f" MFU {r['mfu']:.1%}",
        f"  {r['gpu_hours']:,.0f} GPU-hours, ${r['cost_dollars']:,.0f},"
        f" {r['mwh']:,.4g} MWh, {r['tco2e']:,.4g} tCO2e",
        f"{r['steps']:,} steps of {r['batch']:,} x {r['seq_len']:,} tokens",
        "layout: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in layout.items()),
        f"memory: {sum(r['memory_gib'].values()):.1f} GiB of {r['memory_limit_gib']:.1f}: "
        + ", ".join(f"{part} {size:.1f}" for part, size in r["memory_gib"].items()),
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
