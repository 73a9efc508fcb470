"How an answer is judged: by what it computes, differentiates, promises and costs."

from collections.abc import Callable
from typing import NamedTuple

from llama_course.classroom.compare import misfit
from llama_course.classroom.exercise import LOOKS, Exercise, Mistake
from llama_course.classroom.observation import Observation
from llama_course.classroom.report import Report
from llama_course.classroom.surroundings import neutral
from llama_course.classroom.trial import NO_ANSWER, SHORT, AnswerLost, Findings, Trial, trial_of

NEEDED_LOOKS: dict[str, tuple[str, ...]] = {
    "values": (),
    "gradients": ("values",),
    "laws": ("values",),
    "cost": ("values", "gradients"),
}  # look -> looks without which it says nothing


class Fault(NamedTuple):
    "Where an answer failed."

    look: str
    text: str
    cases: tuple[int, ...] = ()  # numbers of the cases in which it failed


def judge(
    exercise: Exercise,
    watch: Callable,  # observes the answer: watch(*args, wrt=, cotangent=) -> Observation
    seed: int = 0,  # of the cases
) -> Report:
    """The four looks at one answer.

    The others need right values; the ledger needs right gradients, too. An answer that is wrong in
    16 bits alone has half of the points of the look, and goes on. Raises `AnswerLost`, with the
    report so far, if the process that runs the answer is lost.
    """
    with neutral():
        trial = trial_of(exercise, seed)
        findings, tally = Findings(trial, watch), Tally(exercise)
        lost = None
        try:
            for look in (look for look in LOOKS if look in exercise.points):
                if not tally.failed & set(NEEDED_LOOKS[look]):
                    tally.add(look, findings)
            if tally.faults and (mistake := suspect(trial, tally.faults[0], findings)):
                tally.remark(mistake)
        except AnswerLost as error:
            lost = error
            tally.messages.insert(0, str(error))
        report = tally.report(findings)
    if lost:
        lost.report = report
        raise lost
    return report


class Tally:
    "Points and messages, look by look."

    def __init__(self, exercise: Exercise):
        self.exercise = exercise
        self.rows: dict[str, tuple] = {
            look: (look, 0, exercise.points[look], "not reached")
            for look in LOOKS
            if look in exercise.points
        }
        self.messages: list[str] = []
        self.faults: list[Fault] = []
        self.failed: set[str] = set()
        self.mistake: Mistake | None = None

    def add(self, look: str, findings: Findings) -> None:
        "Takes one look."
        most, texts = self.exercise.points[look], findings.faults(look)
        wrong = tuple(i for i, text in enumerate(texts) if text)
        if not wrong:
            self.rows[look] = look, most, most, self.praise(look, findings)
            return
        cases, text = findings.trial.cases, texts[wrong[0]]
        by_case = look in ("values", "gradients")
        if by_case and text != NO_ANSWER:
            text += f", with {cases[wrong[0]].text}"
        self.faults.append(Fault(look, text, wrong))
        self.messages.append(f"{look}: {text}")
        longer = [i for i, case in enumerate(cases) if case.dtype not in SHORT]
        if by_case and longer and not set(wrong) & set(longer):
            part = min((most + 1) // 2, most - 1)  # of one point nothing: a fault is never free
            self.rows[look] = look, part, most, "right but for 16 bits"
            return
        self.failed.add(look)
        self.rows[look] = look, 0, most, "failed"

    def praise(self, look: str, findings: Findings) -> str:
        "What is said of a look that found nothing."
        counts = ", ".join(dict.fromkeys(limit.counted for limit in self.exercise.limits))
        return {
            "values": f"right in {len(findings.trial.cases)} cases",
            "gradients": f"right for {', '.join(self.exercise.wrt)}",
            "laws": "; ".join(law.sentence for law in self.exercise.invariants),
            "cost": f"within the limits: {counts}",
        }[look]

    def remark(self, mistake: Mistake) -> None:
        "Names the known mistake that the answer behaves like."
        self.mistake = mistake
        advice = f'hint("{self.exercise.name}", {mistake.hint}) helps.'
        self.messages.append(f'This looks like "{mistake.name}": {mistake.remark} {advice}')

    def report(self, findings: Findings) -> Report:
        "All of it."
        seen = vars(findings).get("seen", [])
        notes = list(dict.fromkeys(text for one in seen for text in one.borrowed))
        return Report(
            self.exercise.name, list(self.rows.values()), self.messages, self.mistake, notes
        )


# ------------------------------------------------------------------- which mistake it looks like


def suspect(trial: Trial, fault: Fault, findings: Findings) -> Mistake | None:
    "The named mistake that behaves as the answer does, in every case."
    if fault.text == NO_ANSWER:
        return None
    alike = [
        (_likeness(fault, findings, trial.findings(mistake)), -number)
        for number, mistake in enumerate(trial.exercise.mistakes)
    ]
    likeness, number = max(alike, default=(0.0, 0))
    return trial.exercise.mistakes[-number] if likeness else None


def _likeness(fault: Fault, ours: Findings, theirs: Findings) -> float:
    """1 where two answers fail in the same look, the same places and the same way; less where their
    costs differ a little; else 0."""
    trial = ours.trial
    for look in LOOKS[: LOOKS.index(fault.look) + 1]:
        if look in NEEDED_LOOKS[fault.look] + (fault.look,) and look in trial.exercise.points:
            wrong = tuple(i for i, text in enumerate(theirs.faults(look)) if text)
            if wrong != (fault.cases if look == fault.look else _wrong(ours, look)):
                return 0.0
    if fault.look == "cost":
        pairs = zip(sum(ours.costs, []), sum(theirs.costs, []))
        ratios = [min(pair) / max(pair) for pair in pairs if max(pair) > 1]
        least = min(ratios, default=0.0)
        return least if least >= 0.75 and not ours.excesses[0] else 0.0
    if fault.look == "laws":
        return float(
            all(_same_way(ours.laws[i].seen, theirs.laws[i].seen, trial) for i in fault.cases)
        )
    part = "value" if fault.look == "values" else "grads"
    return float(
        all(
            _same(ours.seen[i], theirs.seen[i], part, 2 * trial.cases[i].factor)
            for i in fault.cases
        )
    )


def _wrong(findings: Findings, look: str) -> tuple[int, ...]:
    return tuple(i for i, text in enumerate(findings.faults(look)) if text)


def _same_way(ours: list[Observation], theirs: list[Observation], trial: Trial) -> bool:
    "Whether two answers did the same while a law was tried."
    factor = 2 * trial.exercise.factor
    same = (
        _same(a, b, "value", factor) and _same(a, b, "grads", factor) for a, b in zip(ours, theirs)
    )
    return len(ours) == len(theirs) and all(same)


def _same(ours: Observation, theirs: Observation, part: str, factor: float) -> bool:
    "Whether two answers went the same way in one call."
    if ours.error or theirs.error or ours.modified or theirs.modified:
        return _kind_of_failure(ours) == _kind_of_failure(theirs)
    return not misfit(getattr(ours, part), getattr(theirs, part), None, factor)


def _kind_of_failure(seen: Observation) -> tuple:
    return seen.error.split(":")[0].split(" ")[0], seen.modified
