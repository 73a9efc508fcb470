"What the judge knows of `rank_rows`. Spoilers ahead."

import random

from llama_course.classroom.exercise import Exercise


def permutation(n, seed, epoch):
    "The order of an epoch; it stands in the exercise as well."
    return random.Random(f"{seed}, {epoch}").sample(range(n), n)


rank_rows = Exercise(
    "rank_rows",
    chapter="03_data",
    kind="diagnose",
    minutes=20,
    difficulty=2,
    points={"values": 5, "laws": 5},
    hints=(
        "Write down, for batch_size = 4 and n = 10, which rows step 2 should have, for one "
        "process. Then for two processes. What may depend on the rank, and what must not?",
        "Number all rows of the run: row r stands in epoch r // n at the place r % n. Global "
        "batch `step` has the rows step * batch_size up to (step + 1) * batch_size, and may "
        "end in the next epoch.",
        "A rank gets batch_size // world_size of them, one after the other: from step * "
        "batch_size + rank * (batch_size // world_size). The order of an epoch depends on the"
        " seed and the epoch alone.",
    ),
)


@rank_rows.cases
def cases_of_rank_rows(seed):
    draw = random.Random(seed)
    for n, batch_size in ((10, 4), (23, 8), (16, 8), (7, 8), (50, 6), (3, 8), (1, 4)):
        for world_size in (1, 2, 4):
            if batch_size % world_size == 0:
                step = draw.choice([0, 1, 2, 3, 5, 17])
                yield (
                    step,
                    draw.randrange(world_size),
                    world_size,
                    batch_size,
                    n,
                    draw.randrange(1000),
                )


@rank_rows.reference
def truth_of_rank_rows(step, rank, world_size, batch_size, n, seed):
    epochs = (step + 1) * batch_size // n + 1
    endless = [row for epoch in range(epochs) for row in permutation(n, seed, epoch)]
    share = batch_size // world_size
    return endless[step * batch_size :][rank * share : (rank + 1) * share]


def _rows(start, count, n, order):
    "Rows `start` and on of the whole run; `order(epoch)` is the order of an epoch."
    return [order((start + i) // n)[(start + i) % n] for i in range(count)]


@rank_rows.right
def with_places(step, rank, world_size, batch_size, n, seed):
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed, epoch)
    )


@rank_rows.right
def with_epochs(step, rank, world_size, batch_size, n, seed):
    epoch, place = divmod(step * batch_size, n)
    rows = permutation(n, seed, epoch)[place:]
    while len(rows) < batch_size:
        epoch += 1
        rows += permutation(n, seed, epoch)
    return rows[:batch_size][
        batch_size * rank // world_size : batch_size * (rank + 1) // world_size
    ]


@rank_rows.invariant("however many processes there are, together they read the batch of one")
def however_many_processes_there_are(seen):
    one = seen(5, 0, 1, 8, 21, 3).value
    return all(
        [row for rank in range(size) for row in seen(5, rank, size, 8, 21, 3).value] == one
        for size in (2, 4, 8)
    )


@rank_rows.invariant("in an epoch each row comes once, also where batches do not fit into it")
def in_an_epoch_each_row_comes_once(seen):
    rows = [row for step in range(7) for row in seen(step, 0, 1, 6, 21, 9).value]
    return sorted(rows[:21]) == sorted(rows[21:]) == list(range(21)) and rows[:21] != rows[21:]


@rank_rows.invariant("a step does not depend on the steps before it")
def a_step_does_not_depend_on_the_steps_before_it(seen):
    late = seen(40, 1, 2, 4, 10, 8).value
    for step in range(3):
        seen(step, 1, 2, 4, 10, 8)
    return seen(40, 1, 2, 4, 10, 8).value == late


@rank_rows.mistake("as it was given", hint=1)
def as_it_was_given(step, rank, world_size, batch_size, n, seed):
    """This is the code that was to be repaired: seed, place and epoch all depend on the number
    of processes."""
    share = batch_size // world_size
    steps = max(1, n // share)
    epoch, place = divmod(step, steps)
    return permutation(n, seed + rank, epoch)[place * share : (place + 1) * share]


@rank_rows.mistake("the seed has the rank in it", hint=3)
def the_seed_has_the_rank_in_it(step, rank, world_size, batch_size, n, seed):
    "Every process shuffles in its own way: some rows come twice, some never."
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed + rank, epoch)
    )


@rank_rows.mistake("all ranks read the same", hint=3)
def all_ranks_read_the_same(step, rank, world_size, batch_size, n, seed):
    "The rank is not used: every process reads the first part of the batch."
    order = lambda epoch: permutation(n, seed, epoch)
    return _rows(step * batch_size, batch_size // world_size, n, order)


@rank_rows.mistake("each rank a whole batch", hint=3)
def each_rank_a_whole_batch(step, rank, world_size, batch_size, n, seed):
    "batch_size counts the rows of all processes together; a rank reads batch_size // world_size."
    order = lambda epoch: permutation(n, seed, epoch)
    return _rows((step * world_size + rank) * batch_size, batch_size, n, order)


@rank_rows.mistake("steps counted by one process", hint=2)
def steps_counted_by_one_process(step, rank, world_size, batch_size, n, seed):
    "Step after step, all processes together move on by batch_size rows, not by one rank's share."
    share = batch_size // world_size
    return _rows((step + rank) * share, share, n, lambda epoch: permutation(n, seed, epoch))


@rank_rows.mistake("every so-manieth row", hint=3)
def every_so_manieth_row(step, rank, world_size, batch_size, n, seed):
    """The rows of a rank lie one after the other; with [rank::world_size] the joined batch has
    another order."""
    rows = _rows(step * batch_size, batch_size, n, lambda epoch: permutation(n, seed, epoch))
    return rows[rank::world_size]


@rank_rows.mistake("the rest of an epoch is dropped", hint=2)
def the_rest_of_an_epoch_is_dropped(step, rank, world_size, batch_size, n, seed):
    """Rows that fill no batch are left out of every epoch; a batch may end in the next epoch
    instead."""
    share, steps = batch_size // world_size, max(1, n // batch_size)
    start = step // steps * n + step % steps * batch_size
    return _rows(start + rank * share, share, n, lambda epoch: permutation(n, seed, epoch))


@rank_rows.mistake("the same order in every epoch", hint=3)
def the_same_order_in_every_epoch(step, rank, world_size, batch_size, n, seed):
    "The order must depend on the epoch as well as on the seed."
    share = batch_size // world_size
    return _rows(step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed, 0))


@rank_rows.mistake("a batch begins its epoch again", hint=2)
def a_batch_begins_its_epoch_again(step, rank, world_size, batch_size, n, seed):
    """At the end of an epoch the batch goes on in the next epoch's order, not at the start of
    the same one."""
    share = batch_size // world_size
    epoch = step * batch_size // n
    return _rows(step * batch_size + rank * share, share, n, lambda _: permutation(n, seed, epoch))


@rank_rows.mistake("no more than the next epoch", hint=2)
def no_more_than_the_next_epoch(step, rank, world_size, batch_size, n, seed):
    "Where there are fewer rows than a batch has, it may go on for several epochs."
    epoch, place = divmod(step * batch_size, n)
    rows = permutation(n, seed, epoch)[place:] + permutation(n, seed, epoch + 1)
    share = batch_size // world_size
    return rows[rank * share : (rank + 1) * share]


@rank_rows.mistake("the epoch is added to the seed", hint=3)
def the_epoch_is_added_to_the_seed(step, rank, world_size, batch_size, n, seed):
    "With seed + epoch, epoch 1 of this seed is epoch 0 of the next: hand both to permutation."
    share = batch_size // world_size
    return _rows(
        step * batch_size + rank * share, share, n, lambda epoch: permutation(n, seed + epoch, 0)
    )
