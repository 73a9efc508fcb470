"A function in a process of its own that need not import PyTorch: for tests that kill."

import multiprocessing
import os
import sys
import tempfile
from importlib import import_module

PRELOADED = [
    "llama_course.command.cli",
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

    def wait(self, timeout=None):
        self.process.join(timeout)
        assert self.process.exitcode is not None, "it does not end"
        return self.process.exitcode

    def communicate(self, timeout=None):
        self.wait(timeout)
        return tuple(file.read() for file in self.files)
