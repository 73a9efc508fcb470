"The batcher in a thread of its own: a queue with an end, cancelled jobs, faults."

import queue
import sys
import threading
from collections import deque

from llama_course.serving import Batcher, Job


class QueueFull(Exception):
    "All rows are taken and as many requests wait as may wait, or the worker has ended."


class BatchWorker:
    """Steps a batcher in a thread, as long as there are jobs. Submit from any thread.

    Requests of several jobs take turns for the rows, so that a large one does not keep the others
    from beginning.
    """

    def __init__(
        self,
        batcher: Batcher,
        waiting: int = 16,  # requests that may wait for a row
    ) -> None:
        self.batcher = batcher
        self.capacity = len(batcher.rows) + waiting
        self.closed = False
        self._unfinished: list[tuple[Job, ...]] = []
        self._lock = threading.Lock()
        self._arrivals: queue.SimpleQueue[tuple[Job, ...] | None] = queue.SimpleQueue()
        self._turns: deque[deque[Job]] = deque()  # what each request has that is not in the batcher
        self._inside: list[Job] = []  # jobs in the batcher
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, *jobs: Job) -> None:  # of one request
        """Puts a request into the queue, all its jobs or none.

        Raises `QueueFull`, and `UserError` for what cannot be written.
        """
        for job in jobs:
            self.batcher.check(job)
        with self._lock:
            self._forget_finished()
            if self.closed or len(self._unfinished) >= self.capacity:
                raise QueueFull
            self._unfinished.append(jobs)
            self._arrivals.put(jobs)

    def counts(self) -> tuple[int, int]:
        "Texts that are being written; texts that wait."
        with self._lock:
            self._forget_finished()
            left = sum(not job.reason for jobs in self._unfinished for job in jobs)
        inside = sum(not job.reason for job in self._inside)
        return inside, max(0, left - inside)

    def stop(self) -> None:
        "Asks the thread to end after the step that it is in; jobs not done end as cancelled."
        with self._lock:
            self.closed = True
        self._arrivals.put(None)

    def close(self) -> None:
        "Stops, and waits for the thread."
        self.stop()
        self.thread.join()

    def _forget_finished(self) -> None:
        self._unfinished = [
            jobs for jobs in self._unfinished if not all(job.reason for job in jobs)
        ]

    def _run(self) -> None:
        reason = "cancelled"
        try:
            while not self.closed:
                self._receive()
                self._hand_over()
                self.batcher.step()
        except Exception as error:
            # a fault of ours: nobody waits forever, and no one is let in
            reason = "error"
            self.stop()
            print(f"the batcher stopped: {error!r}", file=sys.stderr)
        for jobs in self._unfinished:
            for job in jobs:
                if not job.reason:
                    job.end(reason)

    def _receive(self) -> None:
        "Takes what has arrived; waits for the next request when there is nothing to do."
        wait = self.batcher.is_idle() and not self._turns
        while wait or not self._arrivals.empty():
            jobs = self._arrivals.get()
            if jobs is None:
                return
            self._turns.append(deque(jobs))
            wait = False

    def _hand_over(self) -> None:
        "Gives the batcher as many jobs as it has rows, one of each request in turn."
        self._inside = [job for job in self._inside if not job.reason]
        while self._turns and len(self._inside) < len(self.batcher.rows):
            jobs = self._turns.popleft()
            job = jobs.popleft()
            if jobs:
                self._turns.append(jobs)
            if job.cancelled:
                job.end("cancelled")
            else:
                self._inside.append(job)
                self.batcher.submit(job)
