"""What numba's kernels lack: threads that meet without leaving them, and memory by its address.

A loop over `numba.prange` wakes the threads, and at its end they spin or sleep again. A model of
thirty layers has some hundred places where everybody must be done before anybody goes on. So the
threads come once for all layers (`join`), and meet at those places (`meet`): a counter in memory
that each raises, and looks at until all have. Nobody waits for a thread that never comes: the team
is who was there when the first one closed it.
"""

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy

from llama_course.support.optional import need

SIZE = 24  # numbers of a team's memory, int64, all 0 when it begins
_ARRIVED, _JOINED, _CLOSED = 0, 8, 16  # places in it, each in a cache line of its own
_LATE = 1 << 32  # who draws this number or more has come after the team was closed
_SPINS = 20000  # looks at a number before others get the core between two looks
_PATIENCE = 40000  # looks until the team is closed without those who are missing


@cache
def tools() -> SimpleNamespace:
    """Compiled `join(memory, wanted)`, `meet(memory, size)`, `numbers_at(address, shape)`, `room`.

    Raises `UserError` without numba.
    """
    numba: Any = need("numba", "fast")
    types: Any = need("numba.core.types", "fast")
    cgutils: Any = need("numba.core.cgutils", "fast")
    intrinsic: Any = need("numba.extending", "fast").intrinsic
    give_way = types.ExternalFunction("sched_yield", types.int32())

    def place_of(context, builder, signature, values):
        kind = signature.args[0]
        array = context.make_array(kind)(context, builder, values[0])
        return cgutils.get_item_pointer(context, builder, kind, array, [values[1]])

    @intrinsic
    def add(typing_context, memory, place, more):
        def code(context, builder, signature, values):
            pointer = place_of(context, builder, signature, values)
            return builder.atomic_rmw("add", pointer, values[2], "seq_cst")

        return types.int64(memory, types.intp, types.int64), code

    @intrinsic
    def read(typing_context, memory, place):
        def code(context, builder, signature, values):
            pointer = place_of(context, builder, signature, values)
            return builder.load_atomic(pointer, "acquire", 8)

        return types.int64(memory, types.intp), code

    @intrinsic
    def pointer_to(typing_context, address):
        def code(context, builder, signature, values):
            return builder.inttoptr(values[0], context.get_value_type(signature.return_type))

        return types.CPointer(types.float32)(types.intp), code

    @numba.njit
    def await_at_least(memory, place, least, patience):
        looks = 0
        while read(memory, place) < least and looks != patience:
            looks += 1
            if looks > _SPINS:
                give_way()

    @numba.njit
    def join(memory, wanted):
        "The thread's number in the team, and the team's size: 0 for who comes too late."
        me = add(memory, _JOINED, 1)
        if me >= _LATE:
            return me, 0
        if me == 0:  # the first waits for the others, and closes the team
            await_at_least(memory, _JOINED, wanted, _PATIENCE)
            add(memory, _CLOSED, add(memory, _JOINED, _LATE))
        await_at_least(memory, _CLOSED, 1, -1)
        return me, read(memory, _CLOSED)

    @numba.njit
    def meet(memory, size):
        "Returns when all have called it."
        goal = (add(memory, _ARRIVED, 1) // size + 1) * size
        await_at_least(memory, _ARRIVED, goal, -1)

    @numba.njit
    def numbers_at(address, shape):
        "The array of float32 that lies at an address."
        return numba.carray(pointer_to(address), shape)

    @numba.njit
    def room(rows, columns):
        "Memory for a matrix of float32 that begins where a line of the processor's cache begins."
        memory = numpy.empty(rows * columns + 16, numpy.float32)
        start = -(memory.ctypes.data // 4) % 16
        return memory[start : start + rows * columns].reshape(rows, columns)

    return SimpleNamespace(join=join, meet=meet, numbers_at=numbers_at, room=room)
