"""What runs the tasks of a stage: this machine, a Slurm cluster or Ray.

An executor of datatrove calls the ranks. When a rank is through, it writes the rank's stats and
then an empty file, the completion marker; a rank with a marker is never run again. On one machine
we call the ranks ourselves, in processes of our own that end with their parent: datatrove's local
executor would start a manager that lives on when its parent is killed.
"""

import hashlib
import multiprocessing
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
from concurrent import futures
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llama_course.corpus.recipe import CorpusRecipe
from llama_course.corpus.stages import CorpusStage, on_document
from llama_course.support.errors import UserError
from llama_course.support.optional import need


class _NoOutput:
    "A place for messages that are in the log file anyway."

    def write(self, text):
        return len(text)

    def flush(self):
        pass


_no_output: Any = _NoOutput()


def make_executor(
    recipe: CorpusRecipe,
    stage: CorpusStage,
    depends: Any = None,  # the executor of the stage before
) -> Any:  # of datatrove
    "The executor that the recipe names. Raises `UserError` if its options are not datatrove's."
    executor = need("datatrove.executor.local", "data").LocalPipelineExecutor
    common = {
        "pipeline": stage.blocks,
        "tasks": stage.tasks,
        "logging_dir": str(stage.logs.resolve()),
        "depends": depends,
    }
    kind = recipe.executor
    try:
        if kind == "slurm":
            from datatrove.executor.slurm import SlurmPipelineExecutor

            own = {"job_name": _job_name(stage.logs.parent)}
            if not {"env_command", "condaenv", "venv_path"} & recipe.slurm.keys():
                scripts = shlex.quote(sysconfig.get_path("scripts"))  # of this Python
                own["env_command"] = f"export PATH={scripts}:$PATH"
            return SlurmPipelineExecutor(**own, **recipe.slurm, **common)
        if kind == "ray":
            need("ray", "cluster")  # datatrove asks for it when tasks are begun
            from datatrove.executor.ray import RayPipelineExecutor

            return RayPipelineExecutor(workers=recipe.workers, **recipe.ray, **common)
    except TypeError as error:
        raise UserError(
            f"[{kind}] in the recipe: datatrove refuses these options ({error})."
        ) from None
    except ImportError as error:
        raise UserError(f"executor = {kind!r}: {error}; install it first.") from None
    return executor(workers=recipe.workers, **common)


def run_source(
    recipe: CorpusRecipe,
    source: str,
    stages: list[CorpusStage],
) -> bool:  # whether all is done; on a cluster it may not be yet
    "Runs the stages of a source, as far as they are not done."
    executors: list[Any] = []
    for stage in stages:
        executors.append(make_executor(recipe, stage, executors[-1] if executors else None))
    if not ranks_to_do(executors[-1], stages[-1].out):
        return True
    if recipe.executor == "slurm":
        return _submit(executors[-1], stages)
    for executor, stage in zip(executors, stages):
        executor.depends, ranks = None, ranks_to_do(executor, stage.out)
        title = f"{source}, {len(ranks)} of {stage.tasks} tasks"
        with tqdm(desc=title, unit=" documents", disable=None) as bar:
            if recipe.executor == "ray" and ranks:
                executor.run()  # tries each task a few times, and says nothing of those that failed
                if left := ranks_to_do(executor, stage.out):
                    raise UserError(
                        f"{source}: {len(left)} of {stage.tasks} tasks failed on Ray: see"
                        f" {stage.logs / 'logs'}, or what Ray printed; the same command goes on."
                    )
            else:
                run_ranks(executor, ranks, recipe.workers, bar)
    return True


def ranks_to_do(
    executor: Any,
    folder: Path,  # of the output
) -> list[int]:
    "The ranks that are still to be done; a marker whose output has gone is taken back."
    for rank in range(executor.world_size):
        marker = Path(executor.logging_dir.resolve_paths(f"completions/{rank:05d}"))
        if marker.exists() and not (folder / f"{rank:05d}.jsonl").exists():
            marker.unlink()
    return executor.get_incomplete_ranks()


def run_ranks(
    executor: Any,
    ranks: list[int],
    workers: int,  # processes; 1: this one
    bar: Any,  # has update(n)
) -> None:
    "Runs these ranks. Raises what a rank raised, or `UserError` if a process was killed."
    if min(workers, len(ranks)) > 1:
        return _run_in_processes(executor, ranks, min(workers, len(ranks)), bar)
    on_document[:] = [bar.update]
    with redirect_stderr(_no_output):
        for rank in ranks:
            executor._run_for_rank(rank)


def _run_in_processes(executor, ranks, workers, bar):
    context = multiprocessing.get_context("spawn")
    counter, seen = context.Value("q", 0), 0
    with ProcessPoolExecutor(workers, context, _begin_worker, (counter,)) as pool:
        try:
            waiting = {pool.submit(executor._run_for_rank, rank) for rank in ranks}
            while waiting:
                done, waiting = futures.wait(waiting, 0.2, futures.FIRST_COMPLETED)
                now = counter.value
                bar.update(now - seen)
                seen = now
                for future in done:
                    future.result()
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, BrokenProcessPool):
                raise
            raise UserError(
                "a worker process was killed, perhaps for want of memory: the same command goes on;"
                " with fewer workers it needs less."
            ) from None


def _begin_worker(counter):
    "Prepares a worker: it counts documents in shared memory, and ends when its parent does."

    def move():
        with counter.get_lock():
            counter.value += 1

    def end():
        wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    on_document[:] = [move]
    sys.stderr = _no_output
    threading.Thread(target=end, daemon=True).start()


def _job_name(folder: Path) -> str:
    "The name that the jobs of a source have, and no others."
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()
    return f"data-{folder.name}-{place[:8]}"


def _none_goes_on(name: str) -> bool:
    "Whether Slurm says that no job of this name runs, or ever will."
    asked = ["squeue", "--me", "--noheader", "--name", name, "--format", "%r"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True)
    except OSError:
        return False
    reasons, never = set(said.stdout.split()), "DependencyNeverSatisfied"
    lost = not reasons or never in reasons and reasons <= {never, "Dependency"}  # of such a job
    return said.returncode == 0 and lost


def _submit(executor, stages: list[CorpusStage]) -> bool:
    "Submits the jobs once; afterwards looks how far they are. Raises `UserError` if they failed."
    submitted = stages[0].logs.parent / "submitted"
    name, ended = _job_name(submitted.parent), False
    if submitted.exists():
        ended = submitted.read_text() == name and _none_goes_on(name)  # before it is counted
    else:
        try:
            with redirect_stderr(_no_output):
                executor.run()  # submits the stage before as well
        except (OSError, subprocess.CalledProcessError) as error:
            raise UserError(
                f"[slurm] in the recipe: the job could not be submitted ({error}); what sbatch says"
                " stands above."
            ) from None
        submitted.write_text(name)
    dones = [len(list((stage.logs / "completions").glob("*"))) for stage in stages]
    is_done = not ranks_to_do(executor, stages[-1].out)
    far = f"{submitted.parent.name}: {sum(dones)} of {sum(s.tasks for s in stages)} tasks are done"
    if ended and not is_done:
        logs = next((s.logs for s, n in zip(stages, dones) if n < s.tasks), stages[-1].logs)
        raise UserError(
            f"{far}, and no job of Slurm goes on: see {logs / 'slurm_logs'}; after `scancel --name"
            f" {name}` and `rm {submitted}` the same command submits what is left."
        )
    print(f"{far}; if the jobs were lost, remove {submitted}", file=sys.stderr)
    return is_done
