"The batcher in a thread of its own: a queue with an end, cancelled jobs, faults."

import queue
import sys
import threading

from llama_course.serving import Batcher, Job


class QueueFull(Exception):
    "All rows are taken and as many jobs wait as may wait, or the worker has ended."


class BatchWorker:
    "Steps a batcher in a thread, as long as there are jobs. Jobs are submitted from any thread."

    def __init__(
        self,
        batcher: Batcher,
        waiting: int = 16,  # jobs that may wait for a row
    ) -> None:
        self.batcher = batcher
        self.capacity = len(batcher.rows) + waiting
        self.closed = False
        self._unfinished: list[Job] = []
        self._lock = threading.Lock()
        self._arrivals: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def submit(self, job: Job) -> None:
        "Puts a job into the queue. Raises `QueueFull`, and `UserError` for what cannot be written."
        self.batcher.check(job)
        with self._lock:
            self._unfinished = [other for other in self._unfinished if not other.reason]
            if self.closed or len(self._unfinished) >= self.capacity:
                raise QueueFull
            self._unfinished.append(job)
            self._arrivals.put(job)

    def close(self) -> None:
        "Ends the thread after the step that it is in; jobs that are not done end as cancelled."
        self._close()
        self.thread.join()

    def _close(self) -> None:
        with self._lock:
            self.closed = True
        self._arrivals.put(None)

    def _run(self) -> None:
        reason = "cancelled"
        try:
            while not self.closed:
                self._receive()
                self.batcher.step()
        except Exception as error:
            # a fault of ours: nobody waits forever, and no one is let in
            reason = "error"
            self._close()
            print(f"the batcher stopped: {error!r}", file=sys.stderr)
        for job in self._unfinished:
            if not job.reason:
                job.end(reason)

    def _receive(self) -> None:
        "Hands what has arrived to the batcher; waits for the next job when there is nothing to do."
        wait = self.batcher.is_idle()
        while wait or not self._arrivals.empty():
            job = self._arrivals.get()
            if job is None:
                return
            self.batcher.submit(job)
            wait = False
