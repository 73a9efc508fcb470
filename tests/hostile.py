"""Notebooks as a class hands them in: right, wrong, broken, and hostile ones.

Shared by the tests and by benchmarks/grading.py.
"""

import json
from pathlib import Path

NORM = """import torch
def rms_norm(x, weight, eps):
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).type_as(x) * weight
"""
RENAMED = """import torch as t
def rms_norm(vectors, gain, small):
    "My own idea."
    w = vectors if vectors.dtype == t.float64 else vectors.float()  # careful
    return (w * t.rsqrt(w.square().mean(-1, keepdim=True) + small)).type_as(vectors) * gain
"""
OTHER = """import torch
def rms_norm(x, weight, eps):
    y = x.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    size = torch.sqrt(torch.sum(y ** 2, dim=-1, keepdim=True) / y.shape[-1] + eps)
    return (y / size).to(x.dtype) * weight
"""
BLOCK = """import torch.nn.functional as F
def pre_norm_block(x, w1, w2, g1, g2, eps):
    h = x + F.rms_norm(x, g1.shape, g1, eps) @ w1
    return h + F.rms_norm(h, g2.shape, g2, eps) @ w2
"""
NO_ROOT = """def rms_norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps) * weight
"""
CENTRED = """def rms_norm(x, weight, eps):
    c = x - x.mean(-1, keepdim=True)
    return c / (c.square().mean(-1, keepdim=True) + eps).sqrt() * weight
"""
NO_GAIN = """def rms_norm(x, weight, eps):
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
"""
POST = """import torch.nn.functional as F
def pre_norm_block(x, w1, w2, g1, g2, eps):
    h = F.rms_norm(x + x @ w1, g1.shape, g1, eps)
    return F.rms_norm(h + h @ w2, g2.shape, g2, eps)
"""
BLANK = "def rms_norm(x, weight, eps):\n    # YOUR CODE HERE\n    raise NotImplementedError()\n"

FORGE = """import os, socket, struct
body = {body!r}
for fd in range(3, 64):
    try: os.write(fd, struct.pack(">QQ", len(body), 0) + body)
    except OSError: pass"""

HOSTILE = {  # what it tries -> a cell that stands before the right answers, which keep their points
    "loops": "while True: pass",
    "exits": "import os\nos._exit(0)",
    "forges half a message": FORGE.format(body=b'{"tree": {"is": null}}'),
    "forges a whole message": FORGE.format(
        body=b'{"message": {"note": "", "replaced": [], "turn": 1}, "tree": {"is": null}}'
    ),
    "forges a score": FORGE.format(body=b'{"points": 30, "passed": true}'),
    "reads the token of a Jupyter server": """import json, pathlib, urllib.request
for home in ("/root", pathlib.Path.home()):
    for file in pathlib.Path(home, ".local/share/jupyter/runtime").glob("jpserver-*.json"):
        server = json.loads(file.read_text())
        urllib.request.urlopen(server["url"] + "api/contents?token=" + server["token"])
        raise SystemExit("READ A TOKEN")
urllib.request.urlopen("http://127.0.0.1:8888/api", timeout=2)""",
    "connects to a Unix socket": """import socket
socket.socket(socket.AF_UNIX).connect("/var/run/docker.sock")""",
    "writes to a device": """import os
for name in ("/dev/sda", "/dev/vda", "/dev/mem", "/dev/kmsg", "/dev/tty"):
    try: open(name, "wb").write(bytes(512))
    except OSError: pass
os.mknod("disk", 0o060600, os.makedev(8, 0))""",
    "starts 100 processes that leave the session": """import os, time
for _ in range(100):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)""",
    "starts 30 processes that leave the session": """import os, time
for _ in range(30):
    if os.fork() == 0:
        os.setsid()
        time.sleep(1000)""",
    "memfd of 2 GB": """import os
fd = os.memfd_create("big")
os.ftruncate(fd, 2 << 30)
for _ in range(2048): os.write(fd, bytes(1 << 20))""",
    "eats memory": "x = []\nwhile True: x.append(bytearray(1 << 24))",
    "fills the disk": "with open('big', 'wb') as f:\n    while True: f.write(bytes(1 << 20))",
    "a comment of 1 MB": "# " + "import " * 150_000,
    "a broken line of 1 MB": "x" * 1_000_000 + " ?!",
    "nine slow cells": "import time\ntime.sleep(4)",  # see `cells_of`
    "kills everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)",
    "reads the others": """import os, pathlib
found = [str(p) for p in pathlib.Path(".").resolve().parent.rglob("*.ipynb")]
found += [str(p) for p in pathlib.Path("/tmp").rglob("*.ipynb")]
raise SystemExit("SEES " + " ".join(found))""",
    "prints without end": "while True: print('10 of 10 points' * 1000)",
}


def notebook(*sources: str) -> bytes:
    "A notebook file with these code cells."
    cells = [
        {
            "cell_type": "code", "metadata": {}, "source": source, "outputs": [],
            "execution_count": None, "id": f"c{i}",
        }
        for i, source in enumerate(sources)
    ]  # fmt: skip
    whole = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole).encode()


def hostile(what: str) -> bytes:
    "A notebook that tries it, and has right answers besides."
    cell = HOSTILE[what]
    if what == "nine slow cells":  # C4: cell 1 is right
        return notebook(NORM, *[cell] * 9, BLOCK)
    return notebook(NORM, cell, BLOCK)


def write_all(papers: dict[str, bytes], folder: Path) -> None:
    "The files, in the folder."
    for name, data in papers.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
