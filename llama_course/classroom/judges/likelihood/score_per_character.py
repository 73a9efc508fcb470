"What the judge knows of `score_per_character`. Spoilers ahead."

import math

import torch

from llama_course.classroom.exercise import Exercise

score_per_character = Exercise(
    "score_per_character",
    chapter="25_likelihood",
    kind="rebuild",
    minutes=20,
    difficulty=2,
    points={"values": 7, "laws": 3},
    hints=(
        "Row t of the logits speaks of the token at t + 1. Which row judges the option's "
        "first token?",
        "log_softmax over the vocabulary, for rows start - 1 to T - 2; from each, the number "
        "of the token that really follows; then the sum.",
        "Divide the sum by the characters of the option without its leading space: len counts"
        " characters, not bytes.",
    ),
)


@score_per_character.cases
def cases_of_score_per_character(seed):
    random = torch.Generator().manual_seed(seed)
    options = " né à Orly", " a whole sentence", " théière", " no way"
    for T, start, option in zip((7, 6, 9, 5), (4, 1, 7, 4), options):
        logits = 3 * torch.randn(T, 13, generator=random)
        yield logits, torch.randint(13, (T,), generator=random), start, option
    logits = 110 * torch.randn(6, 13, generator=random)  # probabilities that float32 rounds to 0
    yield logits, logits.argmin(-1).roll(1), 2, " unlikely"


@score_per_character.reference
def truth_of_score_per_character(logits, ids, start, option):
    total = sum(logits[t - 1, ids[t]] - logits[t - 1].logsumexp(0) for t in range(start, len(ids)))
    return total / len(option.removeprefix(" "))


@score_per_character.invariant("the logits of other places do not matter")
def the_logits_of_other_places_do_not_matter(seen):
    logits, ids, start, option = next(score_per_character.make_cases(5))
    other = logits.clone()
    other[: start - 1], other[-1] = 7.0, torch.arange(13.0)
    return torch.equal(
        seen(logits, ids, start, option).value, seen(other, ids, start, option).value
    )


@score_per_character.invariant("a number added to all logits of a place changes nothing")
def a_number_added_to_all_logits_of_a_place_changes_nothing(seen):
    logits, ids, start, option = next(score_per_character.make_cases(6))
    one, two = (
        seen(l, ids, start, option) for l in (logits, logits + torch.arange(len(ids))[:, None])
    )
    return torch.allclose(one.value, two.value, atol=1e-4)


def _score(
    logits, ids, start, option, shift=1, skip=0, logs=lambda x: x.log_softmax(-1), length=None
):
    "The usual answer, with what goes wrong as arguments."
    ids = ids[start + skip :]
    rows = logs(logits)[start + skip - shift :][: len(ids)]
    characters = len(option.removeprefix(" ")) if length is None else length(option, len(ids))
    return rows[torch.arange(len(ids)), ids].sum() / characters


score_per_character.right(_score)


@score_per_character.right
def from_the_cross_entropy(logits, ids, start, option):
    loss = torch.nn.functional.cross_entropy(logits[start - 1 : -1], ids[start:], reduction="sum")
    return -loss / (len(option) - 1)


@score_per_character.mistake("the logarithm of a softmax", hint=2)
def the_logarithm_of_a_softmax(logits, ids, start, option):
    "A probability below 1e-45 is 0 in float32, and its logarithm infinite: log_softmax is not."
    return _score(logits, ids, start, option, logs=lambda x: x.softmax(-1).log())


@score_per_character.mistake("off by one", hint=1)
def off_by_one(logits, ids, start, option):
    "The logits of a place speak of the NEXT token: the row before it judges a token."
    return _score(logits, ids, start, option, shift=0)


@score_per_character.mistake("the first token is left out", hint=1)
def the_first_token_is_left_out(logits, ids, start, option):
    "The option's first token counts too; the context's last row judges it."
    return _score(logits, ids, start, option, skip=1)


@score_per_character.mistake("a token instead of a character", hint=3)
def a_token_instead_of_a_character(logits, ids, start, option):
    "Divided by the number of tokens; then models with other tokenizers are asked something else."
    return _score(logits, ids, start, option, length=lambda option, n: n)


@score_per_character.mistake("the leading space counts", hint=3)
def the_leading_space_counts(logits, ids, start, option):
    "The space before the option belongs to the prompt, not to the option's length."
    return _score(logits, ids, start, option, length=lambda option, n: len(option))


@score_per_character.mistake("bytes instead of characters", hint=3)
def bytes_instead_of_characters(logits, ids, start, option):
    "len(option.encode()) counts bytes: é has two of them, and is one character."
    return _score(logits, ids, start, option, length=lambda option, n: len(option.encode()) - 1)


@score_per_character.mistake("words instead of characters", hint=3)
def words_instead_of_characters(logits, ids, start, option):
    "Divided by the number of words."
    return _score(logits, ids, start, option, length=lambda option, n: len(option.split()))


@score_per_character.mistake("not divided", hint=3)
def not_divided(logits, ids, start, option):
    "The whole sum prefers short options: divide by the option's characters."
    return _score(logits, ids, start, option, length=lambda option, n: 1)


@score_per_character.mistake("logits instead of logarithms of probabilities", hint=2)
def logits_instead_of_logarithms_of_probabilities(logits, ids, start, option):
    "Logits are no logarithms of probabilities until log_softmax has been taken."
    return _score(logits, ids, start, option, logs=lambda x: x)


@score_per_character.mistake("probabilities are added", hint=2)
def probabilities_are_added(logits, ids, start, option):
    "Probabilities multiply, their logarithms add: log_softmax, not softmax."
    return _score(logits, ids, start, option, logs=lambda x: x.softmax(-1))


@score_per_character.mistake("bits instead of nats", hint=2)
def bits_instead_of_nats(logits, ids, start, option):
    "Base 2: take natural logarithms."
    return _score(logits, ids, start, option, logs=lambda x: x.log_softmax(-1) / math.log(2))


@score_per_character.mistake("softmax over the places", hint=2)
def softmax_over_the_places(logits, ids, start, option):
    "The probabilities of one place add up to one over the VOCABULARY: the last dimension."
    return _score(logits, ids, start, option, logs=lambda x: x.log_softmax(0))


@score_per_character.mistake("the context counts as well", hint=1)
def the_context_counts_as_well(logits, ids, start, option):
    "Only the option's tokens count, those from `start` on."
    return _score(logits, ids, 1, option)
