"An evaluation: every item of every task asked, answered in batches, scored, recorded."

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_course.likelihood import Choose, as_likelihoods, request_tree, score_all
from llama_course.model import Llama
from llama_course.support.disk import only_one, write_json
from llama_course.support.errors import UserError
from llama_course.support.options import option, options
from llama_course.tasks.chats import ChatTokenizer
from llama_course.tasks.journal import Journal, plan_of
from llama_course.tasks.registry import Task, check_programs, find_task
from llama_course.tasks.rows import by_subject, first_of_each, load_items, load_shots, shots_for
from llama_course.tasks.summary import summary
from llama_course.tasks.writing import (
    TEXTS_AT_ONCE,
    Draft,
    Write,
    generator_for,
    prompt_ids,
    write_texts,
)


@options
class Evaluation:
    "How a model is evaluated."

    items: str | Path = option(
        "own",
        "own: a handful of ours; hf: the public sets; or a folder with NAME.jsonl.",
    )
    shots: int | None = option(
        None, "Solved examples before each item; the paper's number if left out.", ge=0
    )
    limit: int | None = option(
        None, "At most so many items of a task, or of each subject of it.", ge=1
    )
    out: Path | None = option(
        None, "A folder for the results, from which a stopped evaluation goes on."
    )
    seed: int = option(0, "Of answers that are drawn.", ge=0, lt=2**63)
    batch_tokens: int = option(2048, "Tokens in a pass through the model, padding included.", ge=1)
    chat: bool = option(False, "Ask by the model's chat template.", flag=True)


@dataclass
class Work:
    "An item that is to be answered."

    task: Task
    index: int  # among the task's items
    item: Any
    request: Choose | Write
    shots: int  # that it has
    from_test: bool = False  # whether they are other items of the same test

    @property
    def key(self) -> tuple[str, int]:
        return self.task.name, self.index


def plan_work(
    tasks: Sequence[str | Task],
    items: str | Path = "own",  # see `Evaluation`, as the next two
    shots: int | None = None,
    limit: int | None = None,
) -> list[Work]:
    "All that is to be answered, in order. Raises `UserError` that names the item."
    work = []
    for task in map(find_task, tasks):
        loaded, n = load_items(task, items), task.shots if shots is None else shots
        apart = load_shots(task, items) if n else None
        pool = by_subject(apart or loaded) if n else {}
        for i, item in enumerate(first_of_each(loaded, limit)):
            shown = shots_for(item, pool, n)
            try:
                request, from_test = task.ask(item, shown), bool(shown) and not apart
                work.append(Work(task, i, item, request, len(shown), from_test))
            except UserError as error:
                raise UserError(f"{task.name}, item {i}: {error}") from None
    return work


def _named(work: Work, function: Callable, *args: Any) -> Any:
    "function(*args); a `UserError` then names the item."
    try:
        return function(*args)
    except UserError as error:
        raise UserError(f"{work.task.name}, item {work.index}: {error}") from None


def item_record(
    work: Work,
    answer: list,  # of Likelihood, or of str
    cut: int,  # tokens that were lost on the left
) -> dict:
    "What is kept of an item: its score and all that it was computed from."
    kept: dict[str, Any] = {"task": work.task.name, "index": work.index}
    for name in ("group", "gold"):
        if (value := getattr(work.item, name, "")) != "":
            kept[name] = value if isinstance(value, int | str) else str(value)
    kept["score"] = float(_named(work, work.task.score, work.item, answer))
    if isinstance(work.request, Choose):
        kept["likelihoods"] = [list(option) for option in answer]
    else:
        kept["texts"] = answer
    return kept | ({"cut": cut} if cut else {})


def choose_all(
    model: Llama,
    tokenizer: Any,
    work: Sequence[Work],
    done: set,  # keys of those that have a record
    batch_tokens: int = 2048,
) -> Iterator[list[dict]]:  # the records of a batch
    "Answers the requests to choose, in batches that do not depend on what is done."
    work = [w for w in work if isinstance(w.request, Choose)]
    longest = model.config.max_seq_len
    trees = [_named(w, request_tree, tokenizer, w.request, longest) for w in work]
    finished = {i for i, w in enumerate(work) if w.key in done}
    for found in score_all(model, trees, batch_tokens, finished):
        records = []
        for i, scores in found:
            answer = _named(work[i], as_likelihoods, work[i].request, trees[i], scores)
            records.append(item_record(work[i], answer, trees[i].cut))
        yield records


def write_all(
    model: Llama,
    tokenizer: Any,
    work: Sequence[Work],
    done: set,  # keys of those that have a record
    seed: int = 0,
) -> Iterator[list[dict]]:  # the records of a batch
    "Answers the requests to write, those with prompts of about the same length together."
    asked = [(w, w.request) for w in work if isinstance(w.request, Write)]
    prompts = [_named(w, prompt_ids, model, tokenizer, request) for w, request in asked]
    groups: list[list[int]] = []
    for i in sorted(range(len(asked)), key=lambda i: (-len(prompts[i][0]), i)):
        room = TEXTS_AT_ONCE - sum(asked[j][1].samples for j in groups[-1]) if groups else 0
        if asked[i][1].samples <= room:
            groups[-1].append(i)
        else:
            groups.append([i])
    for group in groups:
        group = [i for i in group if asked[i][0].key not in done]
        if not group:
            continue
        drafts = [
            Draft(asked[i][1], prompts[i][0], generator_for(seed, asked[i][0].key, k))
            for i in group
            for k in range(asked[i][1].samples)
        ]
        texts = iter(_named(asked[group[0]][0], write_texts, model, tokenizer, drafts))
        answers = {i: [next(texts) for _ in range(asked[i][1].samples)] for i in group}
        yield [item_record(asked[i][0], answer, prompts[i][1]) for i, answer in answers.items()]


def answer_all(
    model: Llama,
    tokenizer: Any,
    work: Sequence[Work],
    settings: Evaluation,
    journal: Journal | None = None,  # where records are, and go to
    progress: bool = True,  # a bar on standard error
) -> list[dict]:
    "All records: those that are there, and those that are made now."
    records = list(journal.records) if journal else []
    done = {(r["task"], r["index"]) for r in records}
    steps = (
        choose_all(model, tokenizer, work, done, settings.batch_tokens),
        write_all(model, tokenizer, work, done, settings.seed),
    )
    with tqdm(
        total=len(work), initial=len(done), unit="item", file=sys.stderr, disable=not progress
    ) as bar:
        for made in (batch for step in steps for batch in step):
            if journal:
                journal.add(made)
            records += made
            bar.update(len(made))
    return records


def evaluate(
    model: Llama,
    tokenizer: Any,
    tasks: Sequence[str | Task],
    how: Evaluation | None = None,  # None: the defaults
    *,
    progress: bool = True,  # a bar on standard error
    **settings: Any,  # fields of `how`: items, shots, limit, out, seed, batch_tokens, chat
) -> dict:  # {"tasks": {name: {"metric", "value", "stderr", "n", "shots"}}, "items": [...]}
    "The scores of a model, and those of every item. Raises `UserError`. (sec. 3)"
    how = Evaluation(**(asdict(how) if how else {}) | settings)
    chosen = [find_task(task) for task in dict.fromkeys(tasks)]
    check_programs(chosen)
    tokenizer = ChatTokenizer(tokenizer) if how.chat else tokenizer
    work = plan_work(chosen, how.items, how.shots, how.limit)
    if how.out is None:
        return summary(work, answer_all(model, tokenizer, work, how, progress=progress))
    with only_one(how.out):
        asked = [(w.key, w.item, w.request) for w in work]
        same = {"seed": how.seed, "batch_tokens": how.batch_tokens}
        plan = plan_of(model, asked, same | ({"chat": True} if how.chat else {}))
        journal = Journal(how.out, plan)
        result = summary(work, answer_all(model, tokenizer, work, how, journal, progress))
        write_json(how.out / "results.json", result)
    return result
