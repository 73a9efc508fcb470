"What the judge knows of `loss_on_answers`. Spoilers ahead."

import torch
import torch.nn.functional as F

from llama_course.classroom.exercise import Exercise


def loss_cases(seed: int):
    "Arguments (logits, tokens, is_answer): (B, T, V), (B, T) integers, (B, T) truth values."
    random = torch.Generator().manual_seed(seed)
    for spans, T, V, dtype in (
        (((4, 7), (8, 10), (2, 9)), 10, 11, torch.float32),
        (((1, 3), (5, 6), (0, 0), (3, 8)), 8, 30, torch.float32),
        (((3, 9),), 12, 7, torch.float64),
        (((0, 4), (2, 6)), 7, 9, torch.float32),  # a row that begins with an answer
    ):
        at = torch.arange(T)
        is_answer = torch.stack([(at >= start) & (at < stop) for start, stop in spans])
        tokens = torch.randint(V, is_answer.shape, generator=random)
        yield 2 * torch.randn(*tokens.shape, V, generator=random).to(dtype), tokens, is_answer


loss_on_answers = Exercise(
    "loss_on_answers",
    chapter="29_instruct",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    wrt=("logits",),
    factor=32.0,
    points={"values": 4, "gradients": 2, "laws": 2, "cost": 2},
    hints=(
        "Write down a row of four tokens, the last two of them the answer. Which positions' "
        "logits predict them? Which entries of the mask does the given code take?",
        "logits[:, t] predict tokens[:, t + 1]. So the mask must be shifted with the tokens: "
        "is_answer[:, 1:].",
        "A mean divides by the number of all tokens. Divide by the number of answer tokens, "
        "of all rows together.",
    ),
)


loss_on_answers.cases(loss_cases)


@loss_on_answers.reference
def truth_of_loss_on_answers(logits, tokens, is_answer):
    places = [(b, t) for b, t in is_answer.nonzero().tolist() if t > 0]
    logs = logits.log_softmax(-1)
    return -torch.stack([logs[b, t - 1, tokens[b, t]] for b, t in places]).mean()


def _costs(logits, tokens):
    return F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")


def _loss(
    logits,
    tokens,
    is_answer,
    mask=lambda is_answer: is_answer[:, 1:],
    mean=lambda costs, mask: costs.sum() / mask.sum(),
):
    "The right answer, with parts that can be exchanged for wrong ones."
    chosen = mask(is_answer)
    return mean(_costs(logits, tokens) * chosen, chosen)


@loss_on_answers.right
def of_chosen_rows(logits, tokens, is_answer):
    chosen = is_answer[:, 1:]
    return F.cross_entropy(logits[:, :-1][chosen], tokens[:, 1:][chosen])


@loss_on_answers.right
def with_ignored_targets(logits, tokens, is_answer):
    targets = tokens[:, 1:].masked_fill(~is_answer[:, 1:], -100)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), ignore_index=-100)


@loss_on_answers.right
def by_the_mean_over_answers(logits, tokens, is_answer):
    return _loss(logits, tokens, is_answer)


@loss_on_answers.invariant(
    "what is said before a token of the prompt changes nothing, and has no gradient"
)
def what_is_said_before_a_token_of_the_prompt_changes_nothing(seen):
    logits, tokens, is_answer = next(loss_cases(3))
    idle = ~F.pad(is_answer[:, 1:], (0, 1))
    before = seen(logits, tokens, is_answer, wrt=(0,), cotangent=torch.tensor(1.0))
    after = seen(torch.where(idle[..., None], -logits, logits), tokens, is_answer)
    return torch.allclose(before.value, after.value) and not before.grads[0][idle].any()


@loss_on_answers.invariant("every answer token counts the same, whichever row it is in")
def every_answer_token_counts_the_same(seen):
    args = next(loss_cases(4))
    alone = [seen(*(t[b : b + 1] for t in args)).value for b in range(3)]
    counts = args[2][:, 1:].sum(1)
    return torch.allclose(seen(*args).value, (torch.stack(alone) * counts).sum() / counts.sum())


@loss_on_answers.limit(
    "saved_bytes", "the backward pass needs one number for each logit, and no second copy"
)
def most_saved_bytes_of_loss_on_answers(logits, tokens, is_answer):
    return logits.nbytes + 64 * tokens.numel()


@loss_on_answers.mistake("the loss as it was given", hint=1)
def the_loss_as_it_was_given(logits, tokens, is_answer):
    "The mask is that of the token before, and the sum is divided by the number of all tokens."
    return _loss(
        logits,
        tokens,
        is_answer,
        mask=lambda m: m[:, :-1],
        mean=lambda costs, mask: costs.mean(1).mean(),
    )


@loss_on_answers.mistake("the mask is off by one", hint=2)
def the_mask_is_off_by_one(logits, tokens, is_answer):
    """is_answer[:, :-1] belongs to the tokens that predict: the first answer token is never
    learnt, and what follows the end is."""
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, :-1])


@loss_on_answers.mistake("divided by all tokens", hint=3)
def divided_by_all_tokens(logits, tokens, is_answer):
    """The sum is divided by the number of all tokens: long prompts make the loss, and the step,
    small."""
    return _loss(logits, tokens, is_answer, mean=lambda costs, mask: costs.mean())


@loss_on_answers.mistake("a first token counts that nobody predicts", hint=3)
def a_first_token_counts_that_nobody_predicts(logits, tokens, is_answer):
    "The first token of a row has no cost, so it does not belong to the number either."
    return _loss(logits, tokens, is_answer, mean=lambda costs, mask: costs.sum() / is_answer.sum())


@loss_on_answers.mistake("a mean of means", hint=3)
def a_mean_of_means(logits, tokens, is_answer):
    """A mean in each row first: a token of a short answer then counts more than one of a long
    answer."""
    return _loss(
        logits,
        tokens,
        is_answer,
        mean=lambda costs, mask: (costs.sum(1) / mask.sum(1).clamp(min=1)).mean(),
    )


@loss_on_answers.mistake("a sum", hint=3)
def a_sum(logits, tokens, is_answer):
    "The mean is wanted, not the sum."
    return _loss(logits, tokens, is_answer, mean=lambda costs, mask: costs.sum())


@loss_on_answers.mistake("the prompt is learnt as well", hint=1)
def the_prompt_is_learnt_as_well(logits, tokens, is_answer):
    "All tokens count: the mask is not used."
    return _loss(logits, tokens, is_answer, mask=lambda m: torch.ones_like(m[:, 1:]))


@loss_on_answers.mistake("the prompt is learnt, and not the answer", hint=1)
def the_prompt_is_learnt_and_not_the_answer(logits, tokens, is_answer):
    "The mask is the wrong way round."
    return _loss(logits, tokens, is_answer, mask=lambda m: ~m[:, 1:])


@loss_on_answers.mistake("the end is not learnt", hint=2)
def the_end_is_not_learnt(logits, tokens, is_answer):
    "The last token of an answer is its end: a model that never learns it never stops."
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, 1:] & F.pad(m[:, 2:], (0, 1)))


@loss_on_answers.mistake("the first answer token is not learnt", hint=2)
def the_first_answer_token_is_not_learnt(logits, tokens, is_answer):
    """The token before the answer is of the prompt, and what it predicts is the answer's first
    token."""
    return _loss(logits, tokens, is_answer, mask=lambda m: m[:, 1:] & m[:, :-1])


@loss_on_answers.mistake("each token predicts itself", hint=2)
def each_token_predicts_itself(logits, tokens, is_answer):
    "logits[:, t] are about tokens[:, t + 1]; here they are compared with tokens[:, t]."
    return F.cross_entropy(logits[is_answer], tokens[is_answer])


@loss_on_answers.mistake("the tokens are set to 0 instead of being left out", hint=3)
def the_tokens_are_set_to_0_instead_of_being_left_out(logits, tokens, is_answer):
    "Token 0 is a token like others: the prompt is now taught to be full of it."
    return F.cross_entropy(logits[:, :-1].mT, (tokens * is_answer)[:, 1:])


@loss_on_answers.mistake("a table of ones and zeros", hint=3)
def a_table_of_ones_and_zeros(logits, tokens, is_answer):
    "A one-hot table is as large as the logits, and kept beside them: pick the elements instead."
    ones = F.one_hot(tokens[:, 1:], logits.size(-1)) * is_answer[:, 1:, None]
    return -(logits[:, :-1].log_softmax(-1) * ones).sum() / is_answer[:, 1:].sum()
