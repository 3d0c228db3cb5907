"""The examination of prepared data: parts in, checks out."""

import logging
from collections.abc import Iterable, Sequence

from great_expectations.expectations import ExpectColumnPairValuesAToBeGreaterThanB

from mtlops.validation.checks import MOST_ROWS, NO_ROW_ID, Check, Wording, describe
from mtlops.validation.engine import Engine, Outcome, Promise
from mtlops.validation.evidence import (
    WORDINGS,
    Fact,
    Keys,
    column_fact,
    conflict_facts,
    evidence_table,
    keys,
    part_facts,
    shared_facts,
)
from mtlops.validation.expectations import label_promises, table_promises
from mtlops.validation.parts import LoadedPart, single_labels

logger = logging.getLogger(__name__)

_LIMITS = tuple(
    Promise(name, Wording(name, ""), ExpectColumnPairValuesAToBeGreaterThanB, {**columns, "or_equal": True})
    for name, columns in {
        "not below": {"column_A": "observed", "column_B": "lowest"},
        "not above": {"column_A": "highest", "column_B": "observed"},
    }.items()
)


def examine(parts: Iterable[LoadedPart], *, facts: Iterable[Fact] = (), min_words: int = 1) -> tuple[Check, ...]:
    """Returns the checks of all parts: first those of each part, then those across them.

    Parts are taken one at a time, and only their row ids, groups and labels are kept, so a generator
    that reads them from disk needs the memory of one.

    Args:
        parts: splits and windows of all tasks.
        facts: what the caller knows beyond the tables.
        min_words: least number of words that `prepare` promised.
    """
    engine = Engine()
    checks: list[Check] = []
    evidence, seen = list(facts), list[Keys]()
    for part in parts:
        evidence.append(column_fact(part))
        if evidence[-1].observed:
            continue
        checks += _part_checks(engine, part, min_words)
        evidence += part_facts(part)
        seen.append(keys(part))
        logger.info("task=%s split=%s rows=%d", part.task.name, part.split, part.table.num_rows)
    evidence += [*shared_facts(seen), *conflict_facts(seen)]
    return (*checks, *_evidence_checks(engine, evidence))


def _part_checks(engine: Engine, part: LoadedPart, min_words: int) -> list[Check]:
    of_rows, of_labels = table_promises(part.split, min_words=min_words), label_promises(part.task)
    labels = single_labels(part)
    if labels is part.table:
        outcomes = engine.outcomes(part.table, [*of_rows, *of_labels], key="row_id", most=MOST_ROWS)
    else:
        outcomes = engine.outcomes(part.table, of_rows, key="row_id", most=MOST_ROWS)
        outcomes += engine.outcomes(labels, of_labels, key="row_id", most=MOST_ROWS)
    return [_part_check(part, outcome) for outcome in outcomes]


def _part_check(part: LoadedPart, outcome: Outcome) -> Check:
    return describe(
        outcome.promise.name,
        outcome.promise.wording,
        task=part.task.name,
        split=part.split,
        passed=outcome.passed,
        observed=outcome.observed,
        failing_rows=[key if isinstance(key, str) else NO_ROW_ID for key in outcome.keys],
    )


def _evidence_checks(engine: Engine, facts: Sequence[Fact]) -> list[Check]:
    """One check for each (check, task, split) of the evidence: it passes when all its facts do."""
    outcomes = engine.outcomes(evidence_table(facts), _LIMITS, key="fact", most=len(facts))
    broken = {int(key) for outcome in outcomes for key in outcome.keys}
    groups: dict[tuple[str, str | None, str | None], list[int]] = {}
    for position, fact in enumerate(facts):
        groups.setdefault((fact.check, fact.task, fact.split), []).append(position)
    return [
        _evidence_check([facts[i] for i in positions], [facts[i] for i in positions if i in broken])
        for positions in groups.values()
    ]


def _evidence_check(facts: Sequence[Fact], broken: Sequence[Fact]) -> Check:
    return describe(
        facts[0].check,
        WORDINGS[facts[0].check],
        task=facts[0].task,
        split=facts[0].split,
        passed=not broken,
        observed=_list_facts(broken or facts),
        failing_rows=[row for fact in broken for row in fact.rows],
    )


def _list_facts(facts: Sequence[Fact]) -> str:
    shown = ", ".join(f"{_number(fact.observed)} {fact.subject}" for fact in facts[:6])
    return shown if len(facts) <= 6 else f"{shown} and {len(facts) - 6} more"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.3g}"
