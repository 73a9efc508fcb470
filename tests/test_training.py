"The training loop: its lines, its recipe, and bits per byte."

import math

import pytest
import torch
import torch.nn.functional as F
from training_run import make

from llama_course.optimizer import cosine_lr
from llama_course.support.errors import UserError
from llama_course.training import Recipe, Step, bits_per_byte, make_loader, train


def test_the_loop_is_its_steps(tmp_path):
    "Each line against a step made by hand; and from the middle, as a resumed run begins."
    model, shards, recipe = make(tmp_path, steps=6)
    loader, by_hand = make_loader(shards, recipe), Step(make(tmp_path)[0], recipe)
    step_of = Step(model, recipe)
    lines = [next(train(model, loader, recipe, step_of))]
    lines += train(model, loader, recipe, step_of, first=1)
    for step, line in enumerate(lines):
        lr = cosine_lr(step, 6, recipe.lr, recipe.warmup)
        loss, norm = by_hand(loader.batch(step), lr)
        assert (line["step"], line["loss"], line["grad_norm"], line["lr"]) == (
            step + 1,
            loss,
            norm,
            lr,
        )
        assert line["tokens"] == (step + 1) * 8 * 32
    assert len(lines) == 6


def test_a_rank_reads_its_own_rows_at_the_steps_rate():
    class Rows:
        def batch(self, *where):
            return where

    seen = []
    step_of = lambda batch, lr: (seen.append((batch, lr)), (2.0, 1.0))[1]
    recipe = Recipe(4, {}, batch_size=8, seq_len=4, lr=1.0, warmup=2)
    (line,) = train(None, Rows(), recipe, step_of, first=3, rank=1, ranks=2)
    assert (
        seen == [((3, 1, 2), cosine_lr(3, 4, 1.0, 2))]
        and line["step"] == 4
        and line["tokens"] == 4 * 8 * 4
    )


@pytest.mark.parametrize(
    "wrong, text",
    [
        ({"lr": math.nan}, "lr must be a number, not nan"),
        ({"lr": -1.0}, "lr must be above 0, not -1.0"),
        ({"precision": "float8"}, "precision must be float32 or bfloat16, not 'float8'"),
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"batchsize": 2}, "did you mean batch_size?"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_line(wrong, text):
    with pytest.raises(UserError) as error:
        Recipe(**{"steps": 1} | wrong)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("n", [2, 31, 32, 33, 34, 65, 300])
def test_bits_per_byte_counts_every_token_once(n, tmp_path):
    "Against a loop over single tokens, each with the context that its window gives it."
    model, _, _ = make(tmp_path)
    ids = torch.randint(64, (n,), generator=torch.Generator().manual_seed(n))
    nats = 0.0
    with torch.no_grad():
        for t in range(1, n):
            context = ids[(t - 1) // 32 * 32 : t]
            nats -= F.log_softmax(model(context[None])[0, -1].double(), -1)[ids[t]].item()
    ours = bits_per_byte(model, ids.numpy(), text_bytes=7 * n, seq_len=32, batch_size=4)
    assert ours == pytest.approx(nats / math.log(2) / (7 * n), rel=1e-5)
