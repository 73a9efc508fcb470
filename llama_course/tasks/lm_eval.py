"""Our models in lm-eval, the harness that others use, and its scores beside ours, item by item.

`python -m llama_course.tasks.lm_eval` is lm-eval's own command, in which `--model llama_course` is
known.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from llama_course.files.load import load
from llama_course.likelihood import Choose, batches, grow_tree, likelihoods_of, score_trees
from llama_course.model import Llama, hugging_face_settings, to_hugging_face
from llama_course.support.disk import atomic_write
from llama_course.support.errors import UserError
from llama_course.support.optional import need
from llama_course.tasks.registry import find_task
from llama_course.tasks.rows import task_rows
from llama_course.tasks.writing import (
    TEXTS_AT_ONCE,
    Draft,
    Write,
    generator_for,
    prompt_ids,
    write_texts,
)


def pair_likelihoods(
    model: Llama,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],  # context, continuation
    batch_tokens: int = 2048,  # in a pass, padding included
) -> list[
    tuple[float, bool]
]:  # log P(continuation | context), whether greedy decoding would write it
    "What lm-eval's `loglikelihood` asks for; what follows the same context is scored together."
    same: dict[str, list[int]] = {}
    for i, (context, _) in enumerate(pairs):
        same.setdefault(context, []).append(i)
    requests = [
        Choose(context, tuple(pairs[i][1] for i in where)) for context, where in same.items()
    ]
    places = list(same.values())
    scores = [(0.0, False)] * len(pairs)
    for r, answer in likelihoods_of(model, tokenizer, requests, batch_tokens):
        for i, found in zip(places[r], answer):
            scores[i] = found.total, found.greedy
    return scores


def windows(
    ids: Sequence[int],
    first: int,  # stands before the text
    longest: int,  # tokens that the model can read
) -> list[tuple[list[int], list[int]]]:  # what is seen before; what is predicted
    "The text in parts that fit; each token is predicted once, behind as much as there is room for."
    parts = []
    for start in range(0, len(ids), longest):
        end = min(start + longest, len(ids))
        before = ids[max(0, end - longest - 1) : start] if start else [first]
        parts.append((list(before), list(ids[start:end])))
    return parts


def text_likelihoods(
    model: Llama,
    tokenizer: Any,
    texts: Sequence[str],
    batch_tokens: int = 2048,
) -> list[float]:  # nats
    "What lm-eval's `loglikelihood_rolling` asks for: log P of each whole text."
    first = tokenizer.bos_id if tokenizer.bos_id >= 0 else tokenizer.eos_id
    longest = model.config.max_seq_len
    parts = [
        (t, part)
        for t, text in enumerate(texts)
        for part in windows(tokenizer.encode(text), first, longest)
    ]
    trees, totals = [grow_tree([part]) for _, part in parts], [0.0] * len(texts)
    for batch in batches([len(tree.tokens) for tree in trees], batch_tokens):
        for i, scores in zip(batch, score_trees(model, [trees[i] for i in batch])):
            totals[parts[i][0]] += scores[0][0]
    return totals


LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first wins


def as_write(
    prompt: str,
    settings: dict,  # as a task of lm-eval gives them
) -> Write:
    "The request in our words. Raises `UserError` for a setting that would not be obeyed."
    left = dict(settings)
    stop, draw = left.pop("until", None) or (), left.pop("do_sample", None)
    lengths = [left.pop(name, None) for name in LENGTHS]
    heat, top_p = float(left.pop("temperature", None) or 0.0), left.pop("top_p", None)
    if left:
        names = ", ".join(sorted(left))
        raise UserError(f"generation setting {names}: this adapter cannot obey it.")
    stop = (stop,) if isinstance(stop, str) else tuple(stop)
    length = next((n for n in lengths if n), 256)
    return Write(prompt, stop, length, temperature=0.0 if draw is False else heat, top_p=top_p)


def write_requests(
    model: Llama,
    tokenizer: Any,
    requests: Sequence[Write],
    seed: int = 0,
) -> list[str]:
    "What lm-eval's `generate_until` asks for; prompts of about the same length go together."
    ids = [prompt_ids(model, tokenizer, r)[0] for r in requests]
    texts = [""] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: -len(ids[i]))
    for start in range(0, len(order), TEXTS_AT_ONCE):
        part = order[start : start + TEXTS_AT_ONCE]
        drafts = [Draft(requests[i], ids[i], generator_for(seed, i)) for i in part]
        for i, text in zip(part, write_texts(model, tokenizer, drafts)):
            texts[i] = text
    return texts


@cache
def adapter() -> type:
    "The class by which lm-eval runs our models; from now on it knows them as `llama_course`."
    base = need("lm_eval.api.model", "eval").LM
    registry = need("lm_eval.api.registry", "eval")

    @registry.register_model("llama_course")
    class CourseLM(base):  # type: ignore[misc, valid-type]
        def __init__(self, path=None, pair=None, batch_tokens=2048, device=None, **batch_sizes):
            super().__init__()
            self.model, self.tokenizer = pair or open_pair(path, device)
            self.batch_tokens = int(batch_tokens)

        def loglikelihood(self, requests, disable_tqdm=False):
            pairs = [r.args for r in requests]
            return pair_likelihoods(self.model, self.tokenizer, pairs, self.batch_tokens)

        def loglikelihood_rolling(self, requests, disable_tqdm=False):
            texts = [r.args[0] for r in requests]
            return text_likelihoods(self.model, self.tokenizer, texts, self.batch_tokens)

        def generate_until(self, requests, disable_tqdm=False):
            asked = [as_write(*r.args) for r in requests]
            return write_requests(self.model, self.tokenizer, asked)

    return CourseLM


def open_pair(path: str | Path | None, device: str | None = None) -> tuple:
    "Model and tokenizer of a run's folder, a GGUF file, or a folder of Meta's or Hugging Face's."
    if path is None:
        raise UserError("no model: say --model_args path=FILE_OR_FOLDER.")
    if not device or not torch.cuda.is_available():
        device = "cpu"  # lm-eval's command says cuda:0 unasked
    return load(path, device=device)


FILES = {  # our name of a task -> lm-eval's file, in its folder of tasks
    "piqa": "piqa/piqa.yaml",
    "social_iqa": "siqa/siqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "boolq": "super_glue/boolq/default.yaml",
    "race_middle": "race/race.yaml",
    "race_high": "race/race.yaml",
    "gsm8k": "gsm8k/gsm8k.yaml",
    "triviaqa": "triviaqa/default.yaml",
    "nq_open": "nq_open/nq_open.yaml",
    "hendrycks_math": "hendrycks_math/hendrycks_math_algebra.yaml",  # as the other six
    "humaneval": "humaneval/humaneval.yaml",
    "mbpp": "mbpp/mbpp.yaml",
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
    rows: Iterable[dict],
) -> list[tuple[str, str, list[dict]]]:  # lm-eval's name, its file, the rows
    "The task as lm-eval has it: MMLU is one task per subject. Raises `UserError` if it has none."
    if name == "mmlu":

        def subject(row: dict) -> str:
            return row["subject"]

        return [
            (f"mmlu_{s}", f"mmlu/default/mmlu_{s}.yaml", list(part))
            for s, part in groupby(sorted(rows, key=subject), subject)
        ]
    if name not in FILES:
        known = ", ".join(FILES)
        raise UserError(f"lm-eval and this course have no task {name!r} in common: {known}, mmlu.")
    return [(name, FILES[name], [their_row(name, row) for row in rows])]


def write_tasks(
    folder: str | Path,  # is made
    names: Sequence[str],  # of tasks of ours
    source: str | Path = "own",  # as in `load_items`
) -> list[str]:  # lm-eval's names of them
    "Writes lm-eval's tasks over local items, for `--include_path FOLDER` or `lm_evaluate`."
    root = Path(need("lm_eval.tasks", "eval").__file__ or "").parent
    folder, made = Path(folder), []
    folder.mkdir(parents=True, exist_ok=True)
    for task in map(find_task, names):
        rows, where = task_rows(task, source)
        if not rows:
            raise UserError(f"{where}: there is no item in it.")
        for name, file, part in their_tasks(task.name, rows):
            path = (folder / f"{name}.jsonl").resolve()
            splits = dict.fromkeys(("train", "validation", "test", "dev"), str(path))
            about = {
                "include": str(root / file),
                "task": name,
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {
                    "data_files": splits,
                    "cache_dir": str(folder.resolve() / "cache"),
                },
            }
            lines = "".join(json.dumps(row) + "\n" for row in part)
            with atomic_write(path) as out:
                out.write(lines.encode())
            with atomic_write(path.with_suffix(".yaml")) as out:
                out.write(json.dumps(about).encode())
            made.append(name)
    return made


def lm_evaluate(
    lm: Any,  # a model of lm-eval's: adapter()(...)
    folder: str | Path,  # what `write_tasks` wrote
    names: Sequence[str],
    shots: int = 0,
    **more: Any,  # of lm-eval's `evaluate`; confirm_run_unsafe_code=True: it runs programs unfenced
) -> dict:  # lm-eval's results; under "samples" every item's
    "lm-eval's scores on local items, with its own prompts, filters and metrics."
    manager = need("lm_eval.tasks", "eval").TaskManager(
        include_path=str(folder), include_defaults=False
    )
    tasks = manager.load(list(names))
    for task in tasks["tasks"].values():
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
    run = need("lm_eval.evaluator", "eval").evaluate
    return run(lm=lm, task_dict=tasks, bootstrap_iters=0, **more)


def scores_of_texts(
    folder: str | Path,  # is made
    name: str,  # of a task of ours that writes
    rows: Sequence[dict],  # with the public columns, each with a prompt of its own
    texts: Sequence[str],  # that a model would go on to write, one for each row
) -> dict[str, list[float]]:  # filter -> the score of each
    "lm-eval's scores of texts that are given: where it cuts them, what it finds, what is right."
    source = Path(folder) / f"{name}.rows.jsonl"
    with atomic_write(source) as out:
        out.write("".join(json.dumps(row) + "\n" for row in rows).encode())
    (task,) = write_tasks(folder, [name], source)

    class Reciter(need("lm_eval.api.model", "eval").LM):  # type: ignore[misc]
        "Says what it was given, up to the first string that ends a text."

        def loglikelihood(self, requests: list) -> list:
            raise NotImplementedError

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests: list) -> list[str]:
            said = dict(zip((r.args[0] for r in requests), texts, strict=True))
            found = []
            for prompt, settings in (r.args for r in requests):
                text = said[prompt]
                for stop in as_write(prompt, settings).stop:
                    text = text.split(stop)[0]
                found.append(text)
            return found

    bars = need("datasets", "eval")
    bars.disable_progress_bars()
    try:
        result = lm_evaluate(Reciter(), folder, [task])
    finally:
        bars.enable_progress_bars()
    scores: dict[str, dict[int, float]] = {}
    for sample in result["samples"][task]:
        scores.setdefault(sample.get("filter", "none"), {})[sample["doc_id"]] = sample[
            "exact_match"
        ]
    return {name: [float(found[i]) for i in sorted(found)] for name, found in scores.items()}


def transformers_lm(
    model: Llama,
    tokenizer: Any,  # a ByteLevelTokenizer: its merges are handed over
    batch_size: int = 1,
) -> Any:
    "lm-eval's own `HFLM` over `transformers`, with the same weights and tokens: to compare with."
    hf = need("transformers", "dev")
    huggingface = need("lm_eval.models.huggingface", "eval")
    state = {name: t.detach() for name, t in model.state_dict().items()}
    twin = hf.LlamaForCausalLM(hf.LlamaConfig(**hugging_face_settings(model.config)))
    strict = not model.config.tie_embeddings
    twin.load_state_dict(to_hugging_face(state, model.config), strict=strict)
    words = {i: word for word, i in tokenizer.controls.items()}
    reader = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._merges,
        bos_token=words.get(tokenizer.bos_id),
        eos_token=words[tokenizer.eos_id],
        pad_token=words[tokenizer.eos_id],
        clean_up_tokenization_spaces=False,
        extra_special_tokens=list(tokenizer.controls),
    )
    twin.generation_config.eos_token_id = tokenizer.eos_id
    twin = twin.to(model.norm.weight.dtype).eval()
    return huggingface.HFLM(twin, "causal", tokenizer=reader, batch_size=batch_size, device="cpu")


def answers_of(
    result: dict,  # of `lm_evaluate`
) -> dict:  # {(task, item): [(arguments, answer), ...]}
    "Every request that lm-eval made, and what the model answered."
    found = {}
    for name, samples in result["samples"].items():
        for s in samples:
            pairs = zip(s["arguments"], s["resps"])
            found[name, s["doc_id"]] = [(tuple(asked), answer[0]) for asked, answer in pairs]
    return found


def lm_eval_command() -> None:
    "lm-eval's own command line, in which `--model llama_course` is known."
    try:
        adapter()
        need("lm_eval.__main__", "eval").cli_evaluate()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    lm_eval_command()
