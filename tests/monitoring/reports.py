"""A report with everything that a report can have."""

from typing import Any

_CELL = {
    "kind": "prediction", "level": "drifted", "verdict": "drifted", "score": 25.8, "p_value": 1e-9, "evidence": 4.0,
    "since": "2026-03-02T00:00:00Z", "drifted": ["prediction.label"],
    "columns": {"prediction.label": {"moved": {"part": "bad", "reference": 0.3, "current": 0.6}}},
}  # fmt: skip

REPORT: dict[str, Any] = {
    "schema_version": 1, "suite": "small", "bundle": "abc", "level": "drifted", "newest_row": "2026-03-02T00:00:00Z",
    "budget": {"false_alarms_per_month": 1.0, "cells": 9, "months_to_a_false_alarm_of_a_cell": 9.0},
    "tasks": {
        "mood": {
            "level": "drifted",
            "cells": {
                "prediction": _CELL,
                "input": {**_CELL, "kind": "input", "level": "ok", "verdict": "insufficient data", "score": None,
                          "p_value": None, "evidence": 0.0, "since": None, "drifted": [], "columns": {}},
            },
            "diagnosis": {"causes": [{"cause": "prior shift", "because": "bad from 30% to 60%."}], "action": "Retrain.",
                          "retraining_helps": True},
            "priors": None,
            "metrics": {"estimated": {"accuracy": 0.8}, "realised": {"accuracy": 0.7}, "reference": {"accuracy": 0.9}},
            "open": {"traffic": {"rows": 3, "bad_rows": 0}, "labels": {"rows": 0, "bad_rows": 0}},
            "windows": {"traffic": 2, "labels": 0},
            "history": [
                {"window": k, "source": "traffic", "from": "2026-03-01T00:00:00Z", "to": "2026-03-02T00:00:00Z",
                 "rows": 500, "level": "drifted", "late_rows": 0, "bad_rows": {"no value": 2},
                 "cells": {"prediction": {"score": 20.0 + k, "p_value": 1e-9, "level": "drifted", "evidence": 4.0}}}
                for k in (2, 1)
            ],
            "decision": "2 of the last windows drifted, the newest too",
        }
    },
    "warnings": ["mood: quality cannot be judged: its reference has 3 rows, 50 are needed."],
    "log": {"url": "log", "counts": {"rows": 1000, "windows.traffic": 2, "retrain.mood.recorded": 1},
            "set_aside": [{"name": "predictions/x.parquet", "reason": "cannot be read"}], "num_set_aside": 1,
            "lost": [{"kind": "predictions", "writer": "w", "from": 1, "to": 2}], "strange": ["x"], "too_late": 0,
            "labels_waiting": 4},
    "requests": [
        {"id": "retrain-1", "time": "2026-03-02T00:00:00Z", "tasks": ["mood"], "status": "recorded",
         "reason": "mood: prior shift", "data_window": {"log": "log", "from": "a", "to": "b"}}
    ],
    "events": [{"time": "2026-03-02T00:00:00Z", "name": "mood", "text": "prediction: ok -> drifted <b>"}],
}  # fmt: skip
