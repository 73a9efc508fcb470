"""A function or a command in a process of its own that need not import PyTorch.

A fork takes a tenth of a second, a fresh Python with PyTorch three seconds of processor time. What
is said of a fresh Python (that a command does not wait for PyTorch, that another hash seed changes
nothing) takes one all the same.
"""

import multiprocessing
import os
import sys
import tempfile
from importlib import import_module
from typing import NamedTuple

PRELOADED = [
    "llama_course.command.cli",
    "llama_course.command.plan",
    "llama_course.command.speak",
    "llama_course.command.train",
    "llama_course.launch.pretrain",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
]


def _in_files(out, err, environment, function, arguments):
    "The call, with its two streams in files."
    for stream, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY), stream)
    os.environ.update(environment)
    function(*arguments)


def as_command(place, *words):
    "Calls `module:function` as a command with these words."
    module, _, function = place.partition(":")
    sys.argv = [module, *map(str, words)]
    getattr(import_module(module), function)()


def as_program(text, *words):
    "Runs the text as `python -c` does."
    sys.argv = ["-c", *map(str, words)]
    exec(compile(text, "<program>", "exec"), {"__name__": "__main__"})


def in_folder(folder, function, *arguments):
    "The call, made there."
    os.chdir(folder)
    function(*arguments)


def with_small_files(size, function, *arguments):
    "The call, in which no file may become larger than so many bytes: a full disk."
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    function(*arguments)


def in_own_group(function, *arguments):
    "The call, in a session and a group of processes of its own, as a shell starts a command."
    os.setsid()
    function(*arguments)


class Forked:
    """Used as `subprocess.Popen` is: a fork of a process that has PyTorch and did nothing yet.

    Where the system has no fork it is a new process.
    """

    def __init__(self, function, *arguments, **environment):
        has_fork = hasattr(os, "fork")
        context = multiprocessing.get_context("forkserver" if has_fork else "spawn")
        if has_fork:
            context.set_forkserver_preload(PRELOADED)
        self.files = [tempfile.NamedTemporaryFile("r", encoding="utf-8") for _ in range(2)]
        self.stdout, self.stderr = self.files  # each read gives what has come since the last
        names = [file.name for file in self.files]
        self.process = context.Process(
            target=_in_files, args=(*names, environment, function, arguments)
        )
        self.process.start()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.process.pid, number)

    def kill(self):
        self.process.kill()

    def terminate(self):
        self.process.terminate()

    def wait(self, timeout=None):
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return tuple(file.read() for file in self.files)


COMMAND = (as_command, "llama_course.command.cli:main")


class Ran(NamedTuple):
    "A process that has ended."

    returncode: int
    stdout: str
    stderr: str


def ran(function, *arguments, **environment):
    "The call in a process of its own, to its end."
    process = Forked(function, *arguments, **environment)
    said = process.communicate(timeout=400)
    return Ran(process.returncode, *said)


def llama_course(*words, folder=".", **environment):
    "`llama-course WORDS` in that folder, to its end."
    return ran(in_folder, folder, *COMMAND, *words, **environment)
