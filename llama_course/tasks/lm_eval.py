"""Our models in the harness that others use, and our scores beside its own, item by item."""

import json
import sys
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import torch

import llama_course.answers  # registers the tasks with written answers
from llama_course.likelihood import (ROWS, Choose, Write, batches, chance, find_task, grow_tree,
                                     likelihoods_of, prompt_ids, rows_of, score_trees, write_rows)
from llama_course.model import Llama
from llama_course.support.errors import UserError
from llama_course.support.disk import atomic_write
from llama_course.files.load import load
from llama_course.support.optional import need

def score_pairs(
    model: Llama,
    tokenizer,
    pairs: Sequence[tuple[str, str]],  # context, continuation
    batch_tokens: int = 2048,  # in a pass, padding included
) -> list[tuple[float, bool]]:  # log P(continuation | context), whether greedy decoding would write it
    "What lm-eval's `loglikelihood` asks for; continuations of the same context are scored together."
    same = {}
    for i, (context, _) in enumerate(pairs): same.setdefault(context, []).append(i)
    requests = [Choose(context, tuple(pairs[i][1] for i in where)) for context, where in same.items()]
    places, scores = list(same.values()), [None] * len(pairs)
    for r, answer in likelihoods_of(model, tokenizer, requests, batch_tokens):
        for i, l in zip(places[r], answer): scores[i] = l.total, l.greedy
    return scores

def windows(
    ids: Sequence[int],
    first: int,  # stands before the text
    longest: int,  # tokens that the model can read
) -> list[tuple[list[int], list[int]]]:  # what is seen before; what is predicted
    "The text in parts that fit, each token predicted once and with as much before it as there is room."
    parts = []
    for start in range(0, len(ids), longest):
        end = min(start + longest, len(ids))
        before = ids[max(0, end - longest - 1) : start] if start else [first]
        parts.append((list(before), list(ids[start:end])))
    return parts

def score_texts(
    model: Llama,
    tokenizer,
    texts: Sequence[str],
    batch_tokens: int = 2048,
) -> list[float]:  # nats
    "What lm-eval's `loglikelihood_rolling` asks for: log P of each whole text."
    first = tokenizer.bos_id if tokenizer.bos_id >= 0 else tokenizer.eos_id
    parts = [(t, part) for t, text in enumerate(texts)
             for part in windows(tokenizer.encode(text), first, model.config.max_seq_len)]
    trees, totals = [grow_tree([part]) for _, part in parts], [0.0] * len(texts)
    for batch in batches([len(tree.tokens) for tree in trees], batch_tokens):
        for i, scores in zip(batch, score_trees(model, [trees[i] for i in batch])):
            totals[parts[i][0]] += scores[0][0]
    return totals

LENGTHS = "max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"  # the first wins


def as_write(
    prompt: str,
    settings: dict,  # as a task of lm-eval gives them
) -> Write:
    "The request in our words. Raises `UserError` for a setting that would not be obeyed."
    left = dict(settings)
    stop, draw = left.pop("until", None) or (), left.pop("do_sample", None)
    lengths = [left.pop(name, None) for name in LENGTHS]
    heat, top_p = float(left.pop("temperature", None) or 0.0), left.pop("top_p", None)
    if left: raise UserError(f"generation setting {', '.join(sorted(left))}: this adapter cannot obey it.")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    return Write(prompt, stop, next((n for n in lengths if n), 256),
                 temperature=0.0 if draw is False else heat, top_p=top_p)

def write_texts(
    model: Llama,
    tokenizer,
    requests: Sequence[Write],
    seed: int = 0,
) -> list[str]:
    "What lm-eval's `generate_until` asks for; prompts of about the same length are continued together."
    ids, texts = [prompt_ids(model, tokenizer, r)[0] for r in requests], [""] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: -len(ids[i]))
    for start in range(0, len(order), ROWS):
        part = order[start : start + ROWS]
        rows = [(requests[i], ids[i], chance(seed, i)) for i in part]
        for i, text in zip(part, write_rows(model, tokenizer, rows)): texts[i] = text
    return texts

@cache
def adapter() -> type:
    "The class by which lm-eval runs our models; from now on it knows them as `llama_course`."
    base, registry = need("lm_eval.api.model", "eval").LM, need("lm_eval.api.registry", "eval")

    @registry.register_model("llama_course")
    class CourseLM(base):
        def __init__(self, path=None, pair=None, batch_tokens=2048, device=None, **batch_sizes):  # unused
            super().__init__()
            self.model, self.reader = pair or open_pair(path, device)
            self.batch_tokens = int(batch_tokens)

        def loglikelihood(self, requests, disable_tqdm=False):
            return score_pairs(self.model, self.reader, [r.args for r in requests], self.batch_tokens)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            return score_texts(self.model, self.reader, [r.args[0] for r in requests], self.batch_tokens)

        def generate_until(self, requests, disable_tqdm=False):
            return write_texts(self.model, self.reader, [as_write(*r.args) for r in requests])

    return CourseLM

def open_pair(path, device=None) -> tuple:
    "Model and tokenizer of a run's folder, a GGUF file, or a folder of Meta's or Hugging Face's."
    if path is None: raise UserError("no model: say --model_args path=FILE_OR_FOLDER.")
    if not device or not torch.cuda.is_available(): device = "cpu"  # lm-eval's command says cuda:0 unasked
    return load(path, device=device)

def command():
    "lm-eval's own command line, in which `--model llama_course` is known."
    try:
        adapter()
        need("lm_eval.__main__", "eval").cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__" and __spec__: command()  # in a notebook there is no __spec__

FILES = {  # our name of a task -> lm-eval's file, in its folder of tasks
    "piqa": "piqa/piqa.yaml", "social_iqa": "siqa/siqa.yaml", "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml", "arc_easy": "arc/arc_easy.yaml", "race_high": "race/race.yaml",
    "arc_challenge": "arc/arc_challenge.yaml", "openbookqa": "openbookqa/openbookqa.yaml",
    "boolq": "super_glue/boolq/default.yaml", "race_middle": "race/race.yaml", "gsm8k": "gsm8k/gsm8k.yaml",
    "triviaqa": "triviaqa/default.yaml", "nq_open": "nq_open/nq_open.yaml",
    "hendrycks_math": "hendrycks_math/hendrycks_math_algebra.yaml",  # its seven files differ in their items
    "humaneval": "humaneval/humaneval.yaml", "mbpp": "mbpp/mbpp.yaml",
}

def their_row(
    name: str,  # of the task
    row: dict,  # with the columns that we read
) -> dict:
    "The row with the columns that lm-eval's task reads."
    if name in ("boolq", "piqa"):  # lm-eval would look for a label that is text among the options
        return {**row, "label": int(row["label"] if "label" in row else row["answer"])}
    if name.startswith("race"):
        problem = {key: row[key] for key in ("question", "answer", "options")}
        return {"article": row["article"], "problems": repr([problem])}
    return row

def their_tasks(
    name: str,  # of a task of ours
    rows: list[dict],
) -> list[tuple[str, str, list[dict]]]:  # lm-eval's name, its file, the rows
    "The task as lm-eval has it: MMLU is one task a subject there."
    if name == "mmlu":
        subject = lambda row: row["subject"]
        return [(f"mmlu_{s}", f"mmlu/default/mmlu_{s}.yaml", list(part))
                for s, part in groupby(sorted(rows, key=subject), subject)]
    if name not in FILES:
        raise UserError(f"lm-eval and this course have no task {name!r} in common: {', '.join(FILES)}, mmlu.")
    return [(name, FILES[name], [their_row(name, row) for row in rows])]

def write_tasks(
    folder,  # is made
    names: Sequence[str],  # of tasks of ours
    source="own",  # as in `load_items`: "own", a file, or a folder with NAME.jsonl, .csv or .tsv
) -> list[str]:  # lm-eval's names of them
    "Writes lm-eval's tasks over local items, for `--include_path FOLDER` or `lm_evaluate`."
    root, folder, made = Path(need("lm_eval.tasks", "eval").__file__).parent, Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for task in map(find_task, names):
        rows, where = rows_of(task, source)
        if not rows: raise UserError(f"{where}: there is no item in it.")
        for name, file, part in their_tasks(task.name, rows):
            path = (folder / f"{name}.jsonl").resolve()
            splits = dict.fromkeys(("train", "validation", "test", "dev"), str(path))
            about = {"include": str(root / file), "task": name, "dataset_path": "json", "dataset_name": None,
                     "dataset_kwargs": {"data_files": splits, "cache_dir": str(folder.resolve() / "cache")}}
            lines = "".join(json.dumps(row) + "\n" for row in part)
            with atomic_write(path) as out: out.write(lines.encode())
            with atomic_write(path.with_suffix(".yaml")) as out: out.write(json.dumps(about).encode())
            made.append(name)
    return made

def lm_evaluate(
    lm,  # a model of lm-eval's: adapter()(...)
    folder,  # what `write_tasks` wrote
    names: Sequence[str],
    shots: int = 0,
    **more,  # of lm-eval's `evaluate`; confirm_run_unsafe_code=True: it runs programs without a sandbox
) -> dict:  # lm-eval's results; under "samples" every item's
    "lm-eval's scores on local items, with its own prompts, filters and metrics."
    manager = need("lm_eval.tasks", "eval").TaskManager(include_path=str(folder), include_defaults=False)
    tasks = manager.load(list(names))
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
    return need("lm_eval.evaluator", "eval").evaluate(
        lm=lm, task_dict=tasks, bootstrap_iters=0, **more)

def transformers_lm(
    model: Llama,
    tokenizer,  # a ByteLevelTokenizer: its merges are handed over
    batch_size: int = 1,
):
    "lm-eval's own `HFLM` over `transformers`, with the same weights and tokens: to compare with."
    hf, huggingface = need("transformers", "dev"), need("lm_eval.models.huggingface", "eval")
    from llama_course.model import hugging_face_settings, to_hugging_face

    state = {name: t.detach() for name, t in model.state_dict().items()}
    twin = hf.LlamaForCausalLM(hf.LlamaConfig(**hugging_face_settings(model.config)))
    twin.load_state_dict(to_hugging_face(state, model.config), strict=not model.config.tie_embeddings)
    words = {i: word for word, i in tokenizer.controls.items()}
    ends = {"bos_token": words.get(tokenizer.bos_id), "eos_token": words[tokenizer.eos_id]}
    settings = ends | {"pad_token": ends["eos_token"], "clean_up_tokenization_spaces": False,
                       "extra_special_tokens": list(tokenizer.controls)}
    reader = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer._merges, **settings)
    twin.generation_config.eos_token_id = tokenizer.eos_id
    twin = twin.to(model.norm.weight.dtype).eval()
    return huggingface.HFLM(twin, "causal", tokenizer=reader, batch_size=batch_size, device="cpu")

def answers_of(
    result: dict,  # of `lm_evaluate`
) -> dict:  # {(task, item): [(arguments, answer), ...]}
    "Every request that lm-eval made, and what the model answered."
    both = lambda s: zip(s["arguments"], s["resps"])
    return {(name, s["doc_id"]): [(tuple(asked), found[0]) for asked, found in both(s)]
            for name, samples in result["samples"].items() for s in samples}
