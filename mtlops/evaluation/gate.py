"""The gate: whether a model may replace the champion, decided task by task.

`decide` reads the content of evaluation.json and nothing else, so any decision can be made again from that file.
Its rules, per task:

REJECT   the primary metric is below `gates.floor`; fewer behavioural cases pass than `gates.behaviour_pass_rate`;
         or the task, or one of its slices, is significantly worse than the champion on the same rows.
HOLD     even the upper end of the metric's interval is below the baseline; or a loss of `gates.max_drop` against
         the champion is not ruled out.
PROMOTE  neither.

The suite gets the worst verdict of its tasks. A missing task of the champion counts as HOLD, unless
`gates.allow_removed`. With `gates.promote_when: better`, PROMOTE becomes HOLD when no task is significantly better than
the champion and none is new to it. Without a champion, floor, behaviour and baseline decide alone; so they do for a
task that the champion does not have, or has with other classes.

An update (`evaluation["retrain"]`) has trained some tasks of its parent, which is then the champion, again. Such a task
is compared twice: on the test rows that were known before its newest labelled window it must lose nothing that the
rules above forbid, and on the test rows of the window it must be significantly better, else it is held. Every other
task is the parent's own, which `evaluate` has proved to the bit.

Better and worse are two families of tests, each corrected (Holm) so that with nothing but noise one of its members
is significant with a chance of `gates.alpha` at most. Identical tasks are in neither: they cannot differ by chance.
That a loss is ruled out must hold for every task at once, so each such test keeps the full level (intersection-union
test, Berger 1982, Technometrics 24).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtlops.evaluation.bootstrap import holm

VERDICTS = ("PROMOTE", "HOLD", "REJECT")
"""From the best to the worst; a suite gets the worst of its tasks."""

Content = Mapping[str, Any]
Finding = tuple[str, str]
"""A verdict, and the sentence that says why."""


@dataclass(frozen=True)
class TaskVerdict:
    """One task's verdict and the sentences that explain it, the decisive one first.

    Attributes:
        verdict: PROMOTE, HOLD or REJECT.
        reasons: what decided, then what else was found.
        kind: `compared` with the champion, `new`, `classes-changed` (judged as new), `removed`, or `untouched`: taken
            over by an update.
    """

    verdict: str
    reasons: tuple[str, ...]
    kind: str = "new"


@dataclass(frozen=True)
class Decision:
    """What happens to the suite, why, and the verdict of each task.

    Attributes:
        verdict: PROMOTE, HOLD or REJECT.
        judged: what the rules say; another than `verdict` only when `mode` does not enforce them.
        mode: `gates.mode`.
        champion: id of the bundle that the verdict was made against, or None.
        reasons: of the suite's verdict.
        tasks: verdict of each task, those of the champion that are missing last.
    """

    verdict: str
    judged: str
    mode: str
    champion: str | None
    reasons: tuple[str, ...]
    tasks: Mapping[str, TaskVerdict]


def decide(evaluation: Content) -> Decision:
    """Returns the decision that the content of evaluation.json leads to."""
    gate, champion = evaluation["gate"], evaluation["champion"]
    champion_id = champion["bundle_id"] if champion else None
    if gate["mode"] == "disabled":
        reason = "The gate is disabled (gates.mode): nothing was judged."
        tasks = {name: TaskVerdict("PROMOTE", (reason,), t["comparison"]) for name, t in evaluation["tasks"].items()}
        tasks |= _untouched(evaluation)
        return Decision("PROMOTE", "PROMOTE", gate["mode"], champion_id, (reason,), tasks)
    evidence = _Evidence.read(evaluation)
    tasks = {name: _judge(name, task, gate, evidence) for name, task in evaluation["tasks"].items()}
    tasks |= _untouched(evaluation)
    tasks |= {name: _judge_removed(name, champion_id, gate) for name in (champion["removed"] if champion else ())}
    judged, reasons = _whole(tasks, evidence, gate, champion_id)
    if gate["mode"] == "dry-run":
        said = f"gates.mode is dry-run, so this model is not held up; the rules say {judged}."
        return Decision("PROMOTE", judged, gate["mode"], champion_id, (said, *reasons), tasks)
    return Decision(judged, judged, gate["mode"], champion_id, reasons, tasks)


@dataclass(frozen=True)
class _Evidence:
    """Corrected p-values by comparison, a task's name or `task, column=value` of a slice; one mapping a family."""

    has_champion: bool
    transfer: str
    better: Mapping[str, float]
    worse: Mapping[str, float]
    twin_better: Mapping[str, float]
    twin_worse: Mapping[str, float]

    @classmethod
    def read(cls, evaluation: Content) -> "_Evidence":
        tasks = evaluation["tasks"]
        compared = {n: t["champion"] for n, t in tasks.items() if _differs(t["champion"])}
        twins = {n: t["twin"] for n, t in tasks.items() if _differs(t["twin"])}
        slices = {_slice_name(n, s): s for n in compared for s in _judged_slices(tasks[n])}
        windows = {_window_name(n, t): t["window"]["champion"] for n, t in tasks.items() if _has_new_rows(t)}
        # A task with new rows is there to get better on those.
        on_all = {n: c for n, c in compared.items() if not tasks[n].get("window")}
        return cls(
            has_champion=evaluation["champion"] is not None,
            transfer=evaluation["twins"]["said"],
            better=holm({n: c["p_better"] for n, c in (on_all | windows).items()}),
            worse=holm({n: c["p_worse"] for n, c in (compared | slices | windows).items()}),
            twin_better=holm({n: c["p_better"] for n, c in twins.items()}),
            twin_worse=holm({n: c["p_worse"] for n, c in twins.items()}),
        )

    def improved(self, alpha: float) -> list[str]:
        return [name for name, p in self.better.items() if p <= alpha]


def _differs(change: Content | None) -> bool:
    return change is not None and not change["is_identical"]


def _has_new_rows(task: Content) -> bool:
    """Whether the task was compared on a labelled window, and answers differ there."""
    return bool(task.get("window")) and not task["window"]["champion"]["is_identical"]


def _window_name(name: str, task: Content) -> str:
    return f"{name}, window {task['window']['name']}"


def _judged_slices(task: Content) -> Iterator[Content]:
    """The slices that were compared with the champion: they hold enough rows, and an answer differs in them."""
    return (part for part in task.get("slices", ()) if part.get("p_worse") is not None)


def _slice_name(task: str, part: Content) -> str:
    return f"{task}, {part['column']}={part['value']}"


def _judge(name: str, task: Content, gate: Content, evidence: _Evidence) -> TaskVerdict:
    found = [
        *_floor(name, task),
        *_behaviour(name, task, gate),
        *_champion(name, task, gate, evidence),
        *_slices(name, task, gate, evidence),
        *_window(name, task, gate, evidence),
        *_baseline(name, task, gate),
    ] or [("PROMOTE", f"{_measured(name, task)}; there is no floor, no baseline and no champion to reach.")]
    found.sort(key=lambda finding: -VERDICTS.index(finding[0]))
    found += _transfer(name, task, gate, evidence)
    return TaskVerdict(found[0][0], tuple(sentence for _, sentence in found), task["comparison"])


def _judge_removed(name: str, champion: str | None, gate: Content) -> TaskVerdict:
    if gate["allow_removed"]:
        return TaskVerdict("PROMOTE", (f"{name}: removed; gates.allow_removed lets it go.",), "removed")
    reason = (
        f"{name}: the champion {champion} does this task, this model does not. Train it again, or set "
        f"gates.allow_removed: true."
    )
    return TaskVerdict("HOLD", (reason,), "removed")


def _measured(name: str, task: Content) -> str:
    metric = task["primary"]
    ours = task["metrics"][metric]
    interval = f"{ours['value']:.4f} ({ours['low']:.4f} to {ours['high']:.4f})"
    return f"{name}: {metric} {interval} on {task['rows']['test']:,} test rows"


def _floor(name: str, task: Content) -> Iterator[Finding]:
    if task["floor"] is None:
        return
    if task["metrics"][task["primary"]]["value"] < task["floor"]:
        yield "REJECT", f"{_measured(name, task)} is below its floor, {task['floor']}."
    else:
        yield "PROMOTE", f"{_measured(name, task)} reaches its floor, {task['floor']}."


def _behaviour(name: str, task: Content, gate: Content) -> Iterator[Finding]:
    least, checks = gate["behaviour_pass_rate"], task.get("behaviour") or ()
    cases, failed = (sum(check[count] for check in checks) for count in ("cases", "failed"))
    if least is None or not cases:
        return
    passed = f"{name}: {cases - failed:,} of {cases:,} behavioural cases pass ({1 - failed / cases:.1%})"
    if cases - failed < least * cases:
        worst = max(checks, key=lambda check: check["failed"] / max(check["cases"], 1))
        yield "REJECT", f"{passed}, {least:.1%} must; most fail in {worst['name']!r}."
    else:
        yield "PROMOTE", f"{passed}, as gates.behaviour_pass_rate asks."


def _baseline(name: str, task: Content, gate: Content) -> Iterator[Finding]:
    baseline, metric = gate["baseline"], task["primary"]
    if baseline == "none":
        return
    ours, theirs = task["metrics"][metric], task["baselines"][baseline][metric]["value"]
    measured = _measured(name, task)
    if ours["high"] < theirs:
        yield "HOLD", f"{measured} is below the {baseline} baseline, {theirs:.4f}, even at its upper end."
    elif ours["value"] < theirs:
        yield "PROMOTE", f"{measured} is below the {baseline} baseline, {theirs:.4f}, but its interval reaches it."
    else:
        yield "PROMOTE", f"{measured} is at or above the {baseline} baseline, {theirs:.4f}."


def _champion(name: str, task: Content, gate: Content, evidence: _Evidence) -> Iterator[Finding]:
    change = task["champion"]
    if change is None:
        if evidence.has_champion:
            yield "PROMOTE", f"{name}: {_NOT_COMPARED[task['comparison']]}: judged without the champion."
        return
    alpha, rows, metric = gate["alpha"], task["rows"]["test"], task["primary"]
    if change["is_identical"]:
        value = f"{metric} {task['metrics'][metric]['value']:.4f}"
        yield "PROMOTE", f"{name}: identical: the champion answers each of the {rows:,} test rows the same ({value})."
        return
    said = _change(name, metric, task["metrics"], change["metrics"], change["change"], rows=rows)
    better, worse, drop = evidence.better.get(name, 1.0), evidence.worse[name], change["p_drop"]
    if worse <= alpha:
        yield "REJECT", f"{said} is significantly worse ({_p(evidence.worse, name, gate)})."
    if drop is not None and drop > alpha:
        loss = f"a loss of gates.max_drop, {gate['max_drop']} (p {drop:.4f}, must be at most {alpha})"
        yield "HOLD", f"{said} does not rule out {loss}."
    if better <= alpha:
        yield "PROMOTE", f"{said} is significantly better ({_p(evidence.better, name, gate)})."
    elif worse > alpha:
        p = f"better {better:.4f}, worse {worse:.4f}" if name in evidence.better else f"worse {worse:.4f}"
        yield "PROMOTE", f"{said} is no significant change (corrected p: {p})."


_NOT_COMPARED: Mapping[str, str] = {
    "new": "new, the champion does not have it",
    "classes-changed": "the champion has it with another kind or other classes",
}


def _slices(name: str, task: Content, gate: Content, evidence: _Evidence) -> Iterator[Finding]:
    for part in _judged_slices(task) if _differs(task["champion"]) else ():
        where = _slice_name(name, part)
        if evidence.worse[where] <= gate["alpha"]:
            sides = part["metrics"], part["champion"], part["change"]
            said = _change(where, task["primary"], *sides, rows=part["rows"])
            yield "REJECT", f"{said} is significantly worse ({_p(evidence.worse, where, gate)})."


def _window(name: str, task: Content, gate: Content, evidence: _Evidence) -> Iterator[Finding]:
    """What the newest labelled window says: it is why the task was trained again."""
    found = task.get("window")
    if not found:
        return
    where, metric, change = _window_name(name, task), task["primary"], found["champion"]
    if change["is_identical"]:
        yield "HOLD", f"{where}: the champion answers each of its {found['rows']:,} test rows the same."
        return
    said = _change(where, metric, found["metrics"], change["metrics"], change["change"], rows=found["rows"])
    if evidence.worse[where] <= gate["alpha"]:
        yield "REJECT", f"{said} is significantly worse ({_p(evidence.worse, where, gate)})."
    elif evidence.better[where] <= gate["alpha"]:
        yield "PROMOTE", f"{said} is significantly better ({_p(evidence.better, where, gate)})."
    else:
        verdict = "HOLD" if gate["promote_when"] == "better" else "PROMOTE"
        yield verdict, f"{said} is not significantly better (corrected p {evidence.better[where]:.4f})."


def _untouched(evaluation: Content) -> dict[str, TaskVerdict]:
    """The tasks that an update took over: `evaluate` has compared their files and answers, or it would have failed."""
    retrain = evaluation.get("retrain")
    if not retrain:
        return {}
    said = "taken over from {parent}: the same files, and the same logits to the bit of each of {rows:,} test rows."
    return {
        name: TaskVerdict(
            "PROMOTE", (f"{name}: {said.format(parent=retrain['parent'], rows=proof['rows'])}",), "untouched"
        )
        for name, proof in retrain["untouched"].items()
    }


def _change(name: str, metric: str, ours: Content, theirs: Content, change: Content, *, rows: int) -> str:
    return (
        f"{name}: {metric} {ours[metric]['value']:.4f} against the champion's {theirs[metric]['value']:.4f} on the "
        f"same {rows:,} test rows: {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f})"
    )


def _p(family: Mapping[str, float], name: str, gate: Content) -> str:
    over = f" over {len(family)} comparisons" if len(family) > 1 else ""
    return f"p {family[name]:.4f} corrected{over}, alpha {gate['alpha']}"


def _transfer(name: str, task: Content, gate: Content, evidence: _Evidence) -> Iterator[Finding]:
    """What sharing did to the task: said, but no verdict rests on it; the champion shares as well."""
    twin = task["twin"]
    if twin is None:
        yield "PROMOTE", f"{name}: negative transfer {evidence.transfer}."
        return
    if twin["is_identical"]:
        yield "PROMOTE", f"{name}: no transfer: its twin, trained alone, gives the same answer to every test row."
        return
    change, value = twin["change"], twin["metrics"][task["primary"]]["value"]
    said = (
        f"{task['primary']} {value:.4f} of its twin, trained alone, on the same {task['rows']['test']:,} test rows: "
        f"{change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}) by sharing"
    )
    if evidence.twin_worse[name] <= gate["alpha"]:
        yield "PROMOTE", f"{name}: negative transfer: {said} ({_p(evidence.twin_worse, name, gate)})."
    elif evidence.twin_better[name] <= gate["alpha"]:
        yield "PROMOTE", f"{name}: positive transfer: {said} ({_p(evidence.twin_better, name, gate)})."
    else:
        yield "PROMOTE", f"{name}: no significant transfer: {said}."


def _whole(
    tasks: Mapping[str, TaskVerdict], evidence: _Evidence, gate: Content, champion: str | None
) -> tuple[str, tuple[str, ...]]:
    verdict = max((task.verdict for task in tasks.values()), key=VERDICTS.index)
    if verdict != "PROMOTE":
        return verdict, tuple(task.reasons[0] for task in tasks.values() if task.verdict == verdict)
    if champion is None:
        passed = f"All {len(tasks)} tasks pass the gate." if len(tasks) > 1 else "The one task passes the gate."
        return verdict, (passed,)
    news = [name for name, task in tasks.items() if task.kind in _NOT_COMPARED]
    improved = evidence.improved(gate["alpha"])
    if gate["promote_when"] == "better" and not news and not improved:
        return "HOLD", (_nothing_better(tasks, evidence, champion),)
    found = [f"significantly better: {', '.join(improved)}"] if improved else []
    found += [f"new to it: {', '.join(news)}"] if news else []
    words = "; ".join([*found, f"nothing is worse ({len(evidence.worse)} comparisons)"])
    return verdict, (f"Against the champion {champion}: {words}.",)


def _nothing_better(tasks: Mapping[str, TaskVerdict], evidence: _Evidence, champion: str) -> str:
    if not evidence.better:
        return f"Every task is identical to the champion {champion}: there is nothing to promote."
    nearest = min(evidence.better, key=lambda name: evidence.better[name])
    return (
        f"No task is significantly better than the champion {champion}; the nearest is {nearest} (corrected p "
        f"{evidence.better[nearest]:.4f}). gates.promote_when: not-worse would promote."
    )
