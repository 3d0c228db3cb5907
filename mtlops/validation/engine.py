"""Great Expectations, run on Arrow tables: in one process, in memory, silent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import pyarrow as pa
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.expectations.metadata_types import FailureSeverity

from mtlops.validation.checks import Wording

_SEVERITIES = {"error": FailureSeverity.CRITICAL, "warning": FailureSeverity.WARNING}


@dataclass(frozen=True)
class Promise:
    """One expectation of Great Expectations and the words for it.

    Attributes:
        name: unique among the promises that are checked together.
        wording: how its check speaks.
        expectation: a class of `great_expectations.expectations`.
        arguments: its arguments.
        counted: what the table has a row for, in the plural.
    """

    name: str
    wording: Wording
    expectation: type[gxe.Expectation]
    arguments: dict[str, Any]
    counted: str = "rows"

    def build(self) -> gxe.Expectation:
        """Returns the expectation, marked with the promise's name, by which its result is found again."""
        severity = _SEVERITIES[self.wording.severity]
        return self.expectation(**self.arguments, severity=severity, meta={"promise": self.name})


@dataclass(frozen=True)
class Outcome:
    """What Great Expectations says about one promise.

    Attributes:
        promise: the promise.
        passed: whether it holds.
        observed: what was seen, in words.
        keys: values of the key column where it does not hold, at most as many as were asked for.
    """

    promise: Promise
    passed: bool
    observed: str
    keys: tuple[Any, ...]


class Engine:
    """One context of Great Expectations for all tables of a run; it writes no file and draws no bar."""

    def __init__(self) -> None:
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(), progress_bars=ProgressBarsConfig(globally=False)
        )
        context = gx.get_context(project_config=config, mode="ephemeral")
        asset = context.data_sources.add_pandas("mtlops").add_dataframe_asset("table")
        self._tables = asset.add_batch_definition_whole_dataframe("all")

    def outcomes(self, table: pa.Table, promises: Sequence[Promise], *, key: str, most: int) -> list[Outcome]:
        """Returns one outcome for each promise about a table, in their order.

        Args:
            table: what is checked.
            promises: with different names.
            key: column that names a row in `Outcome.keys`.
            most: at most this many keys per promise.
        """
        batch = self._tables.get_batch(batch_parameters={"dataframe": table.to_pandas()})
        suite = gx.ExpectationSuite("promises", expectations=[promise.build() for promise in promises])
        result_format = {
            "result_format": "SUMMARY",
            "unexpected_index_column_names": [key],
            "partial_unexpected_count": most,
        }
        results: Sequence[Any] = batch.validate(suite, result_format=result_format).results
        by_name = {result.expectation_config.meta["promise"]: result for result in results}
        return [_outcome(promise, by_name[promise.name], key) for promise in promises]


def _outcome(promise: Promise, result: Any, key: str) -> Outcome:
    reason = _exception(result.exception_info)
    if reason:
        return Outcome(promise, False, f"it could not be checked ({reason})", ())
    found = result.result
    if "unexpected_count" not in found:
        return Outcome(promise, bool(result.success), str(found["observed_value"]), ())
    keys = tuple(row[key] for row in found["partial_unexpected_index_list"] or ())
    return Outcome(promise, bool(result.success), _observed(promise, found, key), keys)


def _exception(info: dict[str, Any]) -> str:
    """The reason why an expectation raised, or ''; the information is flat or keyed by metric."""
    details = [info] if "raised_exception" in info else list(info.values())
    reasons = (str(one["exception_message"]).splitlines()[0] for one in details if one["raised_exception"])
    return next(reasons, "")


def _observed(promise: Promise, found: dict[str, Any], key: str) -> str:
    failing, rows = found["unexpected_count"], found["element_count"]
    if not failing:
        return f"{rows} {promise.counted}"
    values = found["partial_unexpected_list"] if promise.arguments.get("column", key) != key else []
    shown = sorted({_quote(value) for value in values if value is not None and value == value})[:5]
    examples = f": {', '.join(shown)}" if shown else ""
    return f"{failing} of {rows} {promise.counted}{examples}"


def _quote(value: Any) -> str:
    if not isinstance(value, str):
        return f"{value:g}"
    return repr(value if len(value) <= 40 else value[:37] + "...")
