"""What is most likely behind an alarm, and what to do about it.

Three things can change: what comes in, P(x); how often each class occurs, P(y); and what the right answer to the same
text is, P(y|x). Texts, answers and labels move differently under each, and a broken feed moves like none of them.
Without labels nobody can see the third: only answers that are known to be right or wrong show it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtlops.drift.detector import DRIFTED, OK
from mtlops.drift.priors import PriorShift

DATA_FAULT = "data fault"
CONCEPT = "concept shift"
PRIOR = "prior shift"
COVARIATE = "covariate shift"
UNKNOWN = "unexplained"

_WORDS = {
    DATA_FAULT: "Retraining will not help: repair what feeds the service, then reset the alarm.",
    CONCEPT: "Old labels now mislead: check the labelling rules; if they hold, retrain on newly labelled rows alone.",
    PRIOR: "The classes occur in other shares: retrain with rows of now, or at least fit the calibration anew.",
    COVARIATE: "The texts are new to the model: label some of them and retrain with them.",
    UNKNOWN: "Look at the columns that moved and at some rows; label a sample before deciding.",
}
_SAME_TEXTS = "Texts and answers are as before, but fewer answers are right: no estimate without labels can see this."
_UNHARMED = "Labels say that the quality has not fallen: retraining is not urgent."
_UNLABELLED = "Whether it does harm is not known: send labels to /v2/feedback."


@dataclass(frozen=True)
class Diagnosis:
    """The likely causes of the alarms of one task.

    Attributes:
        causes: the likeliest first, each with its reason in a sentence.
        action: what to do.
        retraining_helps: False for a data fault.
    """

    causes: tuple[tuple[str, str], ...]
    action: str
    retraining_helps: bool

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        causes = [{"cause": cause, "because": because} for cause, because in self.causes]
        return {"causes": causes, "action": self.action, "retraining_helps": self.retraining_helps}


def diagnose(
    levels: Mapping[str, str], *, priors: PriorShift | None, floor: float, faults: str, is_labelled: bool
) -> Diagnosis | None:  # fmt: skip
    """Returns what explains the alarms of a task; None when there is none.

    Args:
        levels: of each kind (`columns.KINDS`, and `data`) that was judged.
        priors: shares of the classes by labels; None without them.
        floor: w^2 from which a change of the shares matters.
        faults: what is wrong with the rows, in words; empty when nothing is.
        is_labelled: whether enough labels came in for `label` and `quality` to be judged.
    """
    drifted = {kind for kind, level in levels.items() if level == DRIFTED}
    if not drifted:
        return None
    if "data" in drifted:
        return Diagnosis(((DATA_FAULT, faults),), _WORDS[DATA_FAULT], retraining_helps=False)
    causes = _causes(levels, priors=priors, floor=floor)
    action = _WORDS[causes[0][0]]
    if causes[0][0] in (COVARIATE, PRIOR) and "quality" not in drifted:
        action += f" {_UNHARMED if is_labelled else _UNLABELLED}"
    return Diagnosis(tuple(causes), action, retraining_helps=True)


def _causes(levels: Mapping[str, str], *, priors: PriorShift | None, floor: float) -> list[tuple[str, str]]:
    drifted = {kind for kind, level in levels.items() if level == DRIFTED}
    texts = [kind for kind in ("input", "embedding") if levels.get(kind, OK) != OK]
    answers = bool(drifted & {"prediction", "estimate"})
    causes: list[tuple[str, str]] = []
    if not texts and not answers:
        if "quality" in drifted:
            causes.append((CONCEPT, _SAME_TEXTS))
        elif "label" in drifted:
            causes.append((CONCEPT, "Labels changed while texts and answers did not."))
    if texts:
        said = " and ".join(f"{kind} {levels[kind]}" for kind in texts)
        causes.append((COVARIATE, f"The texts are others than before ({said})."))
    elif answers and "quality" in drifted:
        causes.append((COVARIATE, "Answers moved and fewer of them are right: the texts differ in content."))
    if priors is not None and priors.effect > floor and "label" in drifted:
        causes.append((PRIOR, f"The shares of the classes changed, by labels: {priors.describe()}."))
    if not causes and answers:
        causes.append((COVARIATE, "Answers moved while text statistics did not: the texts differ in content."))
    return causes or [(UNKNOWN, "No rule explains what moved.")]
