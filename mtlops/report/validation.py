"""The page of reports/validation.json."""

from collections.abc import Iterator, Sequence
from typing import Any

from mtlops.report.document import Headline, Page, Payload, banner, facts
from mtlops.report.markup import Markup, chip, details, section, table, value

Check = dict[str, Any]


def _headline(payload: Payload) -> Headline:
    failed, warned, _ = _sorted(payload["checks"])
    total = f"{len(payload['checks']):,} checks"
    if failed:
        return Headline("failed", "bad", f"{len(failed)} of {total} failed: {failed[0]['message']}")
    if warned:
        return Headline("passed", "careful", f"{total}, {len(warned)} with a warning: {warned[0]['message']}")
    return Headline("passed", "good", f"All {total} passed.")


def _body(payload: Payload) -> Iterator[Markup]:
    failed, warned, passed = _sorted(payload["checks"])
    headline = _headline(payload)
    word = "Promises broken" if failed else "Every promise is kept"
    yield banner(word, headline.tone, headline.text)
    yield facts(
        ("checks", len(payload["checks"])), ("failed", len(failed)), ("warnings", len(warned)), ("passed", len(passed))
    )
    if failed or warned:
        yield section("What needs a look", _table([*failed, *warned]))
    if passed:
        tasks = list(dict.fromkeys(check.get("task") for check in passed))
        groups = {task: [c for c in passed if c.get("task") == task] for task in tasks}
        folded = (details(f"{t or 'Across tasks'}: {len(c)} passed", _table(c)) for t, c in groups.items())
        yield section("Passed", *folded)


def _sorted(checks: Sequence[Check]) -> tuple[list[Check], list[Check], list[Check]]:
    """Returns the failed, the warned and the passed checks."""
    bad = [check for check in checks if not check["passed"]]
    failed = [check for check in bad if check.get("severity") == "error"]
    return failed, [c for c in bad if c.get("severity") != "error"], [c for c in checks if c["passed"]]


def _table(checks: Sequence[Check]) -> Markup:
    heads = ["result", "check", "task", "split", "observed", "expected", "message"]
    return table(heads, ([_chip(check), *(_cell(check, head) for head in heads[1:])] for check in checks))


def _cell(check: Check, head: str) -> Markup:
    if head == "check":
        return value(check["name"].replace("_", " "))
    rows = check.get("failing_rows") if head == "message" else None
    shown = value(check.get(head))
    return Markup(shown + details(f"{len(rows)} failing rows", value(rows))) if rows else shown


def _chip(check: Check) -> Markup:
    if check["passed"]:
        return chip("passed", "good")
    return chip("failed", "bad") if check.get("severity") == "error" else chip("warning", "careful")


VALIDATION = Page(
    title="Validation",
    about="Whether the prepared data keep what params.yaml promises about them.",
    keys=frozenset({"checks"}),
    shown=frozenset({"checks", "passed"}),
    headline=_headline,
    body=lambda payload: list(_body(payload)),
)
