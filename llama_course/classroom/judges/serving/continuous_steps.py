"What the judge knows of `continuous_steps`. Spoilers ahead."

from collections import deque

import torch

from llama_course.classroom.exercise import Exercise

continuous_steps = Exercise(
    "continuous_steps",
    chapter="22_serving",
    kind="extend",
    minutes=25,
    difficulty=2,
    points={"values": 6, "laws": 4},
    hints=(
        "Go step by step. At its beginning, rows that are free are given to the requests that "
        "have come and wait; then every row makes a token.",
        "Keep the waiting in the order in which they came: sorted by (arrival, number). A request "
        "whose arrival is later than this step does not wait yet.",
        "A request that begins in step s with n tokens makes its last in step s + n - 1; its row "
        "is free from step s + n on.",
        "Without going step by step: keep for each row the step from which it is free, in a heap. "
        "A request begins at max(its arrival, the earliest of them).",
    ),
)


@continuous_steps.cases
def cases_of_continuous_steps(seed):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: int(torch.randint(n, (), generator=random))
    yield [], 2
    yield [(0, 1)], 1
    yield [(0, 4), (0, 1), (0, 2), (0, 3)], 2  # the first waits for nobody
    yield [(5, 2), (0, 3), (1, 1)], 1  # not in the order of arrival
    yield [(3, 2), (3, 9), (20, 1), (20, 1), (20, 1)], 2  # idle in between
    for rows in (1, 2, 3, 50):
        yield [(draw(12), 1 + draw(8)) for _ in range(9)], rows


@continuous_steps.reference
def truth_of_continuous_steps(requests, rows):
    "Row by row: the earliest free row to the earliest request."
    free, found = [0] * rows, {}
    for i in sorted(range(len(requests)), key=lambda i: (requests[i][0], i)):
        arrival, length = requests[i]
        row = min(range(rows), key=free.__getitem__)
        first = max(arrival, free[row])
        free[row] = first + length
        found[i] = first, first + length - 1
    return [found[i] for i in range(len(requests))]


def _simulated(
    requests, rows, *, order=lambda r, i: (r[0], i), static=False, early=False, ignore=False,
    last=0, block=False, more=0,
):  # fmt: skip
    "Step by step, with a place for each mistake."
    waiting = sorted(range(len(requests)), key=lambda i: order(requests[i], i))
    running, found, step = {}, [None] * len(requests), 0
    while waiting or running:
        here = [i for i in waiting if ignore or requests[i][0] <= step]
        if block:  # whoever stands first in the list keeps the others waiting
            here = here if here[:1] == waiting[:1] else []
            here = [i for n, i in enumerate(waiting) if here and waiting[: n + 1] == here[: n + 1]]
        room = (0 if running else rows) if static else rows + more - len(running)
        for i in here[: max(room, 0)]:
            waiting.remove(i)
            running[i] = requests[i][1]
            found[i] = step, step + requests[i][1] - 1 + last
        for i in list(running):
            running[i] -= 1
            if running[i] <= (1 if early and requests[i][1] > 1 else 0):
                del running[i]
        step += 1
    return found


continuous_steps.right(_simulated)


@continuous_steps.right
def token_by_token(requests, rows):
    left = [length for _, length in requests]
    spans, active, queue, now = [[] for _ in requests], [], deque(), 0
    coming = deque(sorted(enumerate(requests), key=lambda pair: pair[1][0]))
    while coming or queue or active:
        while coming and coming[0][1][0] == now:
            queue.append(coming.popleft()[0])
        while queue and len(active) < rows:
            active.append(queue.popleft())
        for i in active:
            spans[i].append(now)
            left[i] -= 1
        active, now = [i for i in active if left[i]], now + 1
    return [(span[0], span[-1]) for span in spans]


def _tokens_in(spans):
    "How many tokens are made in each step."
    return [sum(a <= t <= b for a, b in spans) for t in range(max(b for _, b in spans) + 1)]


@continuous_steps.invariant(
    "no row is free while a request waits, and no step has more than its rows"
)
def no_row_is_free_while_a_request_waits(seen):
    requests = [(i // 2, 1 + (7 * i) % 11) for i in range(14)]
    for rows in (1, 2, 4):
        spans = seen(requests, rows).value
        for t, made in enumerate(_tokens_in(spans)):
            waits = any(a <= t < first for (a, _), (first, _) in zip(requests, spans))
            if made > rows or (waits and made < rows):
                return False
    return True


@continuous_steps.invariant("where there is a row for each, nobody waits")
def where_there_is_a_row_for_each(seen):
    requests = [(4, 3), (0, 1), (9, 2), (0, 7)]
    return [tuple(span) for span in seen(requests, 4).value] == [(4, 6), (0, 0), (9, 10), (0, 6)]


@continuous_steps.mistake("a batch waits for its longest", hint=1)
def a_batch_waits_for_its_longest(requests, rows):
    "That is static batching: a row that is done stays empty until the whole batch is."
    return _simulated(requests, rows, static=True)


@continuous_steps.mistake("nobody has to arrive", hint=2)
def nobody_has_to_arrive(requests, rows):
    "Requests begin before they have come."
    return _simulated(requests, rows, ignore=True)


@continuous_steps.mistake("the shortest first", hint=2)
def the_shortest_first(requests, rows):
    "How long an answer gets is not known when it begins: who came first begins first."
    return _simulated(requests, rows, order=lambda r, i: (r[1], r[0], i))


@continuous_steps.mistake("in the order of the list", hint=2)
def in_the_order_of_the_list(requests, rows):
    "The list is not sorted: the first of it may come last, and must not keep the others waiting."
    return _simulated(requests, rows, order=lambda r, i: i, block=True)


@continuous_steps.mistake("a row is used twice in a step", hint=3)
def a_row_is_used_twice_in_a_step(requests, rows):
    "A row makes one token in each step: the next request begins in the step after the last token."
    return _simulated(requests, rows, early=True)


@continuous_steps.mistake("the last step is one too late", hint=3)
def the_last_step_is_one_too_late(requests, rows):
    "n tokens from step s on end with step s + n - 1."
    return _simulated(requests, rows, last=1)


@continuous_steps.mistake("a row too many", hint=1)
def a_row_too_many(requests, rows):
    "There are more tokens in a step than there are rows."
    return _simulated(requests, rows, more=1)
