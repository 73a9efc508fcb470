"Ctrl-C and SIGTERM as a question: the work in hand is finished and saved before the process ends."

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from llama_course.support.errors import UserError


class Stopped(KeyboardInterrupt):
    "The work was asked to stop, and goes on from what is saved."

    def __init__(self, number: int, message: str = "stopped"):  # the signal; what was done
        super().__init__(message)
        self.number = number


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    "A list that Ctrl-C and SIGTERM put their number in; a second signal ends the process."
    if threading.current_thread() is not threading.main_thread():
        yield []  # only the main thread may take signals
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        give_back()
        caught.append(number)

    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    except UserError:
        raise
    except Exception:
        if not caught:
            raise
        raise Stopped(caught[0]) from None  # Ctrl-C has ended the compiler that a step waited for
    finally:
        give_back()
