"Shared by the tests: the browser, and the rule that continuous integration has one."

import os
import shutil
import signal
import threading

import pytest

# A shell that starts the tests in the background tells them, and all that they start, to ignore
# Ctrl-C.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# With several workers a file goes to one of them as a whole. The longest begin, or everybody waits
# for the last one; what pytest-xdist would put first are the files with the most tests.
LONGEST = """site class assignments path exercises fault_tolerance grading quantization lm_eval demo
dryrun launch parallel pipeline finetuning cli generation families server serving releases files
export capstone judge model bpe planner cluster ledger workspace""".split()


def pytest_configure(config):
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    rank = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


# No service of the browser's own may call out: a request to another host is then the page's fault.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def browser():
    "Chromium, headless; without it the test is skipped, in continuous integration it fails."
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        reason = f"no browser: none of {', '.join(names)} is installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()
