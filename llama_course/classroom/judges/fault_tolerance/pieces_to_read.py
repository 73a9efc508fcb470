"What the judge knows of `pieces_to_read`. Spoilers ahead."

from llama_course.classroom.exercise import Exercise
from llama_course.classroom.judges.fault_tolerance.common import _numbers

pieces_to_read = Exercise(
    "pieces_to_read",
    chapter="18_fault_tolerance",
    kind="extend",
    minutes=20,
    difficulty=2,
    points={"values": 6, "laws": 4},
    hints=(
        "File i holds the rows from the sum of the sizes before it to that plus its own size. "
        "Which rows does this rank want? The overlap of two intervals is [max, min).",
        "A share has ceil(rows / ranks) rows. The last ranks get what is left: fewer, or none. "
        "-(-a // b) is a divided by b, rounded up.",
        "begin and end count from the beginning of the *file*: take its first row away. A piece "
        "without rows is none.",
    ),
)


@pieces_to_read.cases
def cases_of_pieces_to_read(seed):
    random = _numbers(seed)
    yield [6, 6], 0, 1
    yield [4, 4, 4, 4], 1, 2
    yield [10], 2, 3  # 4, 4 and 2
    yield [5, 5], 3, 4  # 3, 3, 3 and 1
    yield [3, 0, 2, 0], 1, 2  # files without rows
    yield [2, 1], 4, 5  # fewer rows than ranks
    yield [0, 0], 0, 2
    yield [4, 3], 3, 6  # ceil(7 / 6) = 2: the last two ranks get none
    yield [4, 3], 5, 6
    for _ in range(4):
        ranks = 1 + random(5)
        yield [random(9) for _ in range(1 + random(5))], random(ranks), ranks


@pieces_to_read.reference
def truth_of_pieces_to_read(sizes, rank, ranks):
    "Row by row."
    rows = [(file, i) for file, size in enumerate(sizes) for i in range(size)]
    share = -(-len(rows) // ranks)
    wanted = rows[rank * share : (rank + 1) * share]
    files = dict.fromkeys(file for file, _ in wanted)
    return [
        (file, min(i for f, i in wanted if f == file), max(i for f, i in wanted if f == file) + 1)
        for file in files
    ]


def _pieces(
    sizes, rank, ranks, *, up=True, even=False, in_file=True, empty=False, last=0, whole=False
):
    "The overlaps, with a place for each mistake."
    rows = sum(sizes)
    share = -(-rows // ranks) if up else rows // ranks
    low, high = rank * share, min((rank + 1) * share, rows)
    if even:
        low, high = (r * (rows // ranks) + min(r, rows % ranks) for r in (rank, rank + 1))
    pieces, first = [], 0
    for file, size in enumerate(sizes):
        begin, end = max(low, first), min(high, first + size)
        if begin < end or (empty and low < high):
            back = first if in_file else 0
            piece = (begin - back, max(begin, end) - back - last)
            pieces.append((file, 0, size) if whole else (file, *piece))
        first += size
    return pieces


pieces_to_read.right(_pieces)


@pieces_to_read.right
def walking_through_the_files(sizes, rank, ranks):
    share = (sum(sizes) + ranks - 1) // ranks
    skip, wanted, found = share * rank, share, []
    for file in range(len(sizes)):
        begin = min(skip, sizes[file])
        end = min(begin + wanted, sizes[file])
        if end > begin:
            found.append([file, begin, end])
        skip, wanted = skip - begin, wanted - (end - begin)
    return found


@pieces_to_read.invariant("all ranks together read each row once, in order")
def all_ranks_together_read_each_row_once(seen):
    for sizes in ([7, 0, 5, 1], [3, 3], [1], [2] * 9):
        for ranks in (1, 2, 3, 4, 7, 11):
            pieces = [piece for r in range(ranks) for piece in seen(sizes, r, ranks).value]
            rows = [(file, i) for file, begin, end in pieces for i in range(begin, end)]
            if rows != [(file, i) for file, size in enumerate(sizes) for i in range(size)]:
                return False
    return True


@pieces_to_read.mistake("shares are rounded down", hint=2)
def shares_are_rounded_down(sizes, rank, ranks):
    "The rows that are left over belong to nobody: a share is rounded up."
    return _pieces(sizes, rank, ranks, up=False)


@pieces_to_read.mistake("the rest is spread evenly", hint=2)
def the_rest_is_spread_evenly(sizes, rank, ranks):
    "10 rows for 3 ranks are 4, 4 and 2 here (as torch.chunk has it), not 4, 3 and 3."
    return _pieces(sizes, rank, ranks, even=True)


@pieces_to_read.mistake("places in the whole", hint=3)
def places_in_the_whole(sizes, rank, ranks):
    "begin and end are rows of the whole matrix: each file counts its own from 0."
    return _pieces(sizes, rank, ranks, in_file=False)


@pieces_to_read.mistake("pieces without rows", hint=3)
def pieces_without_rows(sizes, rank, ranks):
    "Files of which nothing is wanted are listed as well: each would be opened for nothing."
    return _pieces(sizes, rank, ranks, empty=True)


@pieces_to_read.mistake("the last row is the end", hint=1)
def the_last_row_is_the_end(sizes, rank, ranks):
    "`end` is the row after the last, as in a slice: you give the last row itself."
    return _pieces(sizes, rank, ranks, last=1)


@pieces_to_read.mistake("whole files", hint=1)
def whole_files(sizes, rank, ranks):
    "Each file of which something is wanted is read whole: rows are read more than once."
    return _pieces(sizes, rank, ranks, whole=True)


@pieces_to_read.mistake("file by file", hint=1)
def file_by_file(sizes, rank, ranks):
    "You deal out files, not rows: with other numbers of ranks than files, shares become unequal."
    return [(i, 0, size) for i, size in enumerate(sizes) if i % ranks == rank and size]
