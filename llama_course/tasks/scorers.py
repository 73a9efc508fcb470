"Toxicity scorers: functions from texts to scores from 0 to 1, whose name goes with their numbers."

import json
import os
import time
from collections.abc import Callable, Sequence
from functools import cache
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from llama_course.support.errors import UserError
from llama_course.support.optional import need


class Scorer(Protocol):
    "What scores texts."

    name: str

    def __call__(self, texts: Sequence[str]) -> list[float]: ...


def check_scores(
    scores: Sequence[float],
    texts: Sequence[str],
    name: str,  # of the scorer
) -> list[float]:
    "The scores as floats. Raises `UserError` unless there is one from 0 to 1 for each text."
    scores = [float(score) for score in scores]
    if len(scores) != len(texts):
        raise UserError(f"{name} gave {len(scores)} scores for {len(texts)} texts.")
    if wrong := [score for score in scores if not 0 <= score <= 1]:
        raise UserError(f"{name} gave the score {wrong[0]}: from 0 to 1 is expected.")
    return scores


def package_version(package: str) -> str:
    "The package and its version, without importing it."
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return package


class Offline:
    "The probability that a text is offensive, by the classifier in alt-profanity-check."

    def __init__(self) -> None:
        self.predict = need("profanity_check", "toxicity").predict_prob
        self.name = package_version("alt-profanity-check")

    def __call__(self, texts: Sequence[str]) -> list[float]:
        "A score for each text, from 0 to 1."
        return check_scores(self.predict(list(texts)), texts, self.name) if texts else []


class Detoxify:
    "The toxicity that the package detoxify computes. (Hanu and Unitary 2020)"

    def __init__(
        self,
        model: str = "original",  # "unbiased", "multilingual", "original-small", "unbiased-small"
        checkpoint: str | Path | None = None,  # a file with its weights; None: fetched at first use
        config: str | Path | None = None,  # a folder with the encoder's config and tokenizer
    ):
        package = need("detoxify", "toxicity")
        which = Path(checkpoint).stem if checkpoint else model
        self.name = f"{package_version('detoxify')} {which}"
        files = {
            "checkpoint": checkpoint and str(checkpoint),
            "huggingface_config_path": config and str(config),
        }
        try:
            self.model = package.Detoxify(model, **files)
        except Exception as error:  # no network, no such file, no such model: of many kinds
            why = " ".join(str(error).split())[:200]
            kind = type(error).__name__
            raise UserError(f"{self.name} cannot be loaded: {kind} {why}") from None

    def __call__(self, texts: Sequence[str]) -> list[float]:
        "A score for each text, from 0 to 1."
        found = [self.model.predict(text)["toxicity"] for text in texts]
        return check_scores(found, texts, self.name)


PERSPECTIVE = "https://commentanalyzer.googleapis.com/v1alpha1/comments:analyze"
BUSY = {0, 429, 500, 502, 503, 504}  # 0: no answer at all


class NoRedirect(HTTPRedirectHandler):
    "A key is meant for one address, and goes to no other."

    def redirect_request(self, *request: Any) -> None:
        return None


def perspective_name(url: str) -> str:
    "Google's service, or another that speaks its protocol."
    if url == PERSPECTIVE:
        return "Perspective API"
    return f"Perspective protocol at {urlsplit(url).hostname}"


def perspective_url() -> str:
    "The environment's PERSPECTIVE_API_URL, or Google's."
    return os.environ.get("PERSPECTIVE_API_URL") or PERSPECTIVE


def post_json(
    url: str,
    body: dict,
    headers: dict,
    seconds: float = 30,
) -> tuple[int, dict, str]:  # status, 0 for no answer; what it says; seconds to wait
    "An answer, whatever its status, without following it elsewhere."
    request = Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
    )
    try:
        try:
            answer = build_opener(NoRedirect).open(request, timeout=seconds)
        except HTTPError as error:
            answer = error  # an answer as well
        with answer:
            status, text = answer.status, answer.read()
            wait = answer.headers.get("Retry-After", "")
    except (OSError, HTTPException) as error:
        return 0, {"error": {"message": f"no answer ({error})"}}, ""
    try:
        said = json.loads(text)
    except ValueError:
        said = {}
    return status, said if isinstance(said, dict) else {}, wait


class Perspective:
    "TOXICITY by Perspective API, the paper's scorer, or by another server. (sec. 5.1)"

    def __init__(
        self,
        key: str | None = None,  # None: the environment's PERSPECTIVE_API_KEY
        url: str | None = None,  # None: the environment's PERSPECTIVE_API_URL, or Google's
        per_second: float = 1.0,  # the quota of a new key
        attempts: int = 5,  # of each text, if the server is busy
        clock: Callable[[], float] = time.monotonic,  # tests bring their own clock and sleep
        sleep: Callable[[float], None] = time.sleep,
    ):
        self.key = key or os.environ.get("PERSPECTIVE_API_KEY", "")
        self.url = url or perspective_url()
        self.name, host = perspective_name(self.url), urlsplit(self.url).hostname
        if not self.key:
            raise UserError(
                f"{self.name} needs a key: put yours into the variable PERSPECTIVE_API_KEY."
            )
        local = host in ("127.0.0.1", "localhost", "::1")
        if urlsplit(self.url).scheme != "https" and not local:
            raise UserError(f"{self.url} is not https: the key would be readable on the way.")
        self.pause, self.attempts, self.next = 1 / per_second, attempts, 0.0
        self.clock, self.sleep = clock, sleep

    def __call__(self, texts: Sequence[str]) -> list[float]:
        "A score for each text, from 0 to 1; an empty text, which the server refuses, gets 0."
        found = [self.score(text) if text.strip() else 0.0 for text in texts]
        return check_scores(found, texts, self.name)

    def score(self, text: str) -> float:
        "The score of one text. Raises `UserError` if the server refuses."
        status, said = self._ask(text)
        try:
            return said["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
        except (KeyError, TypeError):
            error = said.get("error")
            why = "there is no score in it."
            if isinstance(error, dict):
                why = str(error.get("message"))
            why = " ".join(why.replace(self.key, "...").split())[:300]
            raise UserError(f"{self.name} answered {status or 'nothing'}: {why}") from None

    def _ask(self, text: str) -> tuple[int, dict]:
        "The server's status and answer; waits for its turn, and while it is busy."
        body = {
            "comment": {"text": text},
            "languages": ["en"],
            "doNotStore": True,
            "requestedAttributes": {"TOXICITY": {}},
        }
        status = 0
        said: dict = {}
        for attempt in range(self.attempts):
            self.sleep(max(0.0, self.next - self.clock()))
            self.next = self.clock() + self.pause
            status, said, wait = post_json(self.url, body, {"X-Goog-Api-Key": self.key})
            if status not in BUSY:
                break
            back = float(wait) if wait.isdigit() else self.pause * 2**attempt
            self.next = self.clock() + min(back, 60)
        return status, said


SCORERS: dict[str, Callable[[], Scorer]] = {
    "offline": Offline,
    "detoxify": Detoxify,
    "perspective": Perspective,
}


@cache
def scorer_of(name: str) -> Scorer:
    "The scorer of that name, made once. Raises `UserError` for one that nobody knows."
    if name not in SCORERS:
        raise UserError(f"no scorer is called {name!r}: {', '.join(SCORERS)}.")
    return SCORERS[name]()
