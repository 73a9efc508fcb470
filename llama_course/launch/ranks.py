"How a process becomes a rank of what torchrun has started, and how it ends."

import os
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import typer

from llama_course.support.errors import UserError
from llama_course.support.options import as_command
from llama_course.support.signals import Stopped


def fresh_store(rank: int) -> dist.Store:
    "A store that no earlier round has written to. Raises `UserError` if rank 0 cannot be reached."
    shared, *_ = next(dist.rendezvous("env://"))
    host, key = os.environ["MASTER_ADDR"], "llama_course/port"
    if rank == 0:
        own = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False)
        shared.set(key, str(own.port))
        return own
    for _ in range(60):
        try:
            port = int(shared.get(key))
            return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
        except dist.DistError:
            time.sleep(0.5)  # that port belonged to a rank that is dead
    raise UserError(f"rank 0 on {host} does not answer: is it reachable from here?")


def join() -> None:
    "Makes this process a rank of what torchrun has started; without torchrun, the only one."
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    store = fresh_store(rank) if "RANK" in os.environ else dist.HashStore()
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def is_first_process() -> bool:
    "Whether this is rank 0, or no rank at all: the one that writes and speaks."
    return int(os.environ.get("RANK", 0)) == 0


def in_one_line(name: str, work: Callable[[], Any]) -> Any:
    "Joins and works; a mistake, or a signal, ends the process with one line and its status."
    try:
        join()
        return work()
    except UserError as error:
        message, status = str(error), 2
    except Stopped as stop:
        message, status = f"{stop}; the same command goes on.", 128 + stop.number
    if is_first_process():
        print(f"{name}: {message}", file=sys.stderr)
    raise typer.Exit(status)


def run_command(
    name: str,  # of the module
    function: Callable,  # parameters that are options classes stand for their fields
    change: Callable[[list[str]], list[str]] = list,  # of the words of the command line
) -> None:
    "The command `python -m NAME`."
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command()(as_command(function))
    try:
        app(change(sys.argv[1:]), prog_name=f"python -m {name}")
    except UserError as error:  # an option that is wrong
        if is_first_process():
            print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)
