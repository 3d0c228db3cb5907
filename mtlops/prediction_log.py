"""What production saw and answered: the tables that the server appends and the monitor reads.

<log>/predictions/date=2026-11-22/<micros>-<writer>-<sequence>.parquet   one row per (request, row, task)
<log>/feedback/date=2026-11-22/<micros>-<writer>-<sequence>.parquet      late labels, by request id and row

A file appears whole or not at all and never changes. Its name starts with the time of its first row in microseconds
since 1970, so names sort by time; `writer` names one process of one server, and `sequence` counts its files from 0, so
a reader sees when one is missing.
"""

from datetime import UTC, datetime

import pyarrow as pa

PREDICTIONS = "predictions"
FEEDBACK = "feedback"

PREDICTION_SCHEMA = pa.schema([
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("request_id", pa.string(), nullable=False),
    pa.field("row", pa.int32(), nullable=False),          # position in the request
    pa.field("task", pa.string(), nullable=False),
    pa.field("bundle_id", pa.string(), nullable=False),
    pa.field("role", pa.string(), nullable=False),        # champion | canary | shadow: who answered; shadow only here
    pa.field("label", pa.list_(pa.string())),             # one name; multilabel any number; tagging: the words' tags
    pa.field("probabilities", pa.list_(pa.float32())),    # in class order; tagging: each tag's share of the words
    pa.field("value", pa.float64()),                      # of a regression, whose label and probabilities are null;
                                                          # tagging: the mean confidence of the words' tags
    # Below: once per (request, row), on its first task; null on the others.
    pa.field("statistics", pa.map_(pa.string(), pa.float64())),  # `drift.columns.text_columns`, names without `text.`
    pa.field("embedding", pa.list_(pa.float32())),        # the graph's output `embedding`; of some rows only
    pa.field("text", pa.string()),                        # only where asked for
])  # fmt: skip

FEEDBACK_SCHEMA = pa.schema([
    pa.field("time", pa.timestamp("us", tz="UTC"), nullable=False),
    pa.field("request_id", pa.string(), nullable=False),
    pa.field("row", pa.int32(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("label", pa.list_(pa.string())),             # as above
    pa.field("value", pa.float64()),
])  # fmt: skip


def file_name(table: str, first: datetime, *, writer: str, sequence: int) -> str:
    """Returns the name of a new file below the log's URL.

    Args:
        table: `PREDICTIONS` or `FEEDBACK`.
        first: time of its first row, with a zone.
        writer: names the process; letters and digits.
        sequence: of the file among this writer's, from 0.
    """
    first = first.astimezone(UTC)
    micros = int(first.timestamp()) * 1_000_000 + first.microsecond
    return f"{table}/date={first:%Y-%m-%d}/{micros:020d}-{writer}-{sequence:08d}.parquet"
