"What the judge knows of `option_scores`. Spoilers ahead."

import torch

from llama_course.classroom.exercise import Exercise

option_scores = Exercise(
    "option_scores",
    chapter="25_likelihood",
    kind="diagnose",
    minutes=15,
    difficulty=1,
    points={"values": 7, "laws": 3},
    hints=(
        "Print the scores of a question with a long context. Which option wins, whatever it says?",
        "The context's log-likelihood C is in every sum. (C + a) / 10 against (C + b) / 20: "
        "and when C is very large?",
        "Sum from `start` on. And see what the length counts for an option such as ' thé'.",
    ),
)


@option_scores.cases
def cases_of_option_scores(seed):
    random = torch.Generator().manual_seed(seed)
    for start, options in (
        (30, (" thé", " café au lait", " water")),
        (3, (" no", " yes")),
        (12, (" the whole of it", " nothing", " a façade", " über")),
    ):
        context = -3 * torch.rand(start, generator=random)
        tails = [-2 * torch.rand(1 + len(o) // 3, generator=random) for o in options]
        yield [torch.cat([context, tail]) for tail in tails], list(options), start


@option_scores.reference
def truth_of_option_scores(logs, options, start):
    totals = [l[start:].sum() / len(o.removeprefix(" ")) for l, o in zip(logs, options)]
    return torch.stack(totals)


@option_scores.invariant("another context with as many tokens gives the same scores")
def another_context_with_as_many_tokens_gives_the_same_scores(seen):
    logs, options, start = next(option_scores.make_cases(8))
    other = [torch.cat([torch.full((start,), -9.0), l[start:]]) for l in logs]
    return torch.equal(seen(logs, options, start).value, seen(other, options, start).value)


def _scores(
    logs, options, start, begin=lambda start: start, length=lambda o, n: len(o) - 1, mean=False
):
    "The usual answer, with what goes wrong as arguments."
    parts = [l[begin(start) :] for l in logs]
    return torch.stack(
        [(p.mean() if mean else p.sum()) / length(o, len(p)) for p, o in zip(parts, options)]
    )


@option_scores.right
def from_the_logs(logs, options, start):
    return _scores(logs, options, start)


@option_scores.right
def minus_the_context(logs, options, start):
    context = logs[0][:start].double().sum()
    lengths = torch.tensor([len(o.lstrip(" ")) for o in options])
    return ((torch.stack([l.double().sum() for l in logs]) - context) / lengths).to(logs[0].dtype)


@option_scores.mistake("as it was given", hint=2)
def as_it_was_given(logs, options, start):
    """The context is in every sum, and divided by different lengths it does not cancel: the
    longest wins."""
    return _scores(
        logs, options, start, begin=lambda start: 0, length=lambda o, n: len(o.encode()) - 1
    )


@option_scores.mistake("the context is still in it", hint=2)
def the_context_is_still_in_it(logs, options, start):
    "Characters are right now, but the context is still in every sum."
    return _scores(logs, options, start, begin=lambda start: 0)


@option_scores.mistake("bytes are still counted", hint=3)
def bytes_are_still_counted(logs, options, start):
    "The context is gone, but é still counts twice: len of the text, not of its bytes."
    return _scores(logs, options, start, length=lambda o, n: len(o.encode()) - 1)


@option_scores.mistake("one token too few", hint=3)
def one_token_too_few(logs, options, start):
    "The option begins at `start`, not behind it."
    return _scores(logs, options, start, begin=lambda start: start + 1)


@option_scores.mistake("one token too many", hint=3)
def one_token_too_many(logs, options, start):
    "The last token of the context is still in the sum."
    return _scores(logs, options, start, begin=lambda start: start - 1)


@option_scores.mistake("a token instead of a character", hint=3)
def a_token_instead_of_a_character_in_option_scores(logs, options, start):
    "Divided by tokens: the rule is a character."
    return _scores(logs, options, start, length=lambda o, n: n)


@option_scores.mistake("the leading space counts", hint=3)
def the_leading_space_counts_in_option_scores(logs, options, start):
    "The space before the option is not part of its length."
    return _scores(logs, options, start, length=lambda o, n: len(o))


@option_scores.mistake("the normalization is given up", hint=2)
def the_normalization_is_given_up(logs, options, start):
    "Without a division the SHORTEST option wins: that is the fault which the rule should mend."
    return _scores(logs, options, start, length=lambda o, n: 1)


@option_scores.mistake("divided twice", hint=3)
def divided_twice(logs, options, start):
    "mean() has divided by the tokens already: sum, then divide by the characters."
    return _scores(logs, options, start, mean=True)


@option_scores.mistake("the whole text's length", hint=2)
def the_whole_texts_length(logs, options, start):
    """Divided by the length of context and option: all lengths are then about equal, nothing is
    normalized."""
    return torch.stack([l[start:].sum() / len(l) for l in logs])
