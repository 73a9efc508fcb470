"The command plan."

from llama_course.command.output import Json, print_result
from llama_course.dryrun import compare
from llama_course.dryrun import in_words as dry_run_in_words
from llama_course.model import LlamaConfig
from llama_course.planner import Layout, in_words, plan
from llama_course.support.errors import UserError
from llama_course.support.options import option, options


@options
class Planning:
    "What is asked of a plan."

    model: str = option("65B", "A model by name: 7B, 13B, 33B, 65B, ...")
    gpus: int = option(2048, "How many.", ge=1)
    gpu: str = option("A100-80GB", "Which, such as A100-80GB, H100-80GB, RTX-4090.")
    tokens: float | None = option(
        None, "To train on; the paper's, or 20 per parameter, if left out.", gt=0
    )
    tensor: int | None = option(
        None, "Tensor-parallel ranks; searched if left out, as the next three.", ge=1
    )
    micro_batch: int | None = option(None, "Sequences at a time in each data rank.", ge=1)
    checkpointing: str | None = option(None, "none, selective or full.")
    sequence: bool | None = option(None, "Sequence parallelism, yes or no.")
    compiled: bool = option(False, "The code between the matrices is fused.", flag=True)
    price: float | None = option(None, "Dollars per GPU-hour.", ge=0)
    dry_run: bool = option(
        False, "Take one step of the real code with shapes alone, and count.", flag=True
    )


def plan_command(p: Planning, as_json: Json = False) -> None:
    "Say what a run needs: memory, days, money, carbon; and how to spread it."
    if p.dry_run and p.compiled:
        raise UserError("a dry run has no compiled code: leave out --compiled or --dry-run.")
    fixed = {
        name: getattr(p, name) for name in ("tensor", "micro_batch", "checkpointing", "sequence")
    }
    result = plan(p.model, p.gpus, p.gpu, p.tokens, fixed, compiled=p.compiled, price=p.price)
    text = in_words(result)
    if p.dry_run:
        config, layout = LlamaConfig.from_name(p.model), Layout(**result["layout"])
        result["dry_run"] = compare(config, layout)
        text += "\n" + dry_run_in_words(result["dry_run"])
    print_result(result, as_json, text)
