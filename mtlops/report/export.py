"""The page of reports/export.json."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtlops.report.document import Headline, Page, Payload, banner, facts, reasons
from mtlops.report.markup import Markup, bars, details, is_number, number, section, size, table, tag, tree, value


def _headline(payload: Payload) -> Headline:
    error, tolerance = _parity(payload)
    total = size(sum(payload.get("files", {}).values()))
    says = f"Largest difference between ONNX Runtime and PyTorch: {number(error)}; bundle of {total}."
    limits = payload.get("limits")
    if limits and not limits["passed"]:
        return Headline("limit broken", "bad", " ".join(limits["reasons"]))
    if tolerance is None:
        return Headline("exported", "plain", says)
    return Headline("parity", "good", says) if error <= tolerance else Headline("differs", "bad", says)


def _body(payload: Payload) -> Iterator[Markup]:
    error, tolerance = _parity(payload)
    limits = payload.get("limits")
    if limits and not limits["passed"]:
        text = "mtlops promote refuses this bundle: " + " ".join(limits["reasons"])
        yield banner("A limit is broken", "bad", text)
    if tolerance is not None:
        is_same = error <= tolerance
        text = f"The largest difference of a logit is {number(error)}; {number(tolerance)} is allowed."
        word = "ONNX Runtime answers as PyTorch does" if is_same else "ONNX Runtime differs from PyTorch"
        yield banner(word, "good" if is_same else "bad", text)
    files: Mapping[str, int] = payload.get("files", {})
    yield facts(
        ("bundle", payload.get("bundle", {}).get("id")),
        ("its size", size(sum(files.values()))),
        ("largest difference", number(error)),
        ("graph nodes", payload.get("nodes")),
        ("ONNX operator set", payload.get("opset")),
    )
    if limits and limits["passed"]:
        yield section("Limits", reasons(limits["reasons"]))
    yield from _variants(payload.get("variants") or {})
    latency = payload.get("latency_ms")
    yield section("Latency, ms", _latency(latency)) if latency else Markup()
    if files:
        yield section("Files of the bundle", bars(files, {name: size(n) for name, n in files.items()}))
    shapes = payload["parity"].get("shapes")
    yield section("Parity by shape", details(f"{len(shapes)} shapes", tree(shapes))) if shapes else Markup()


def _variants(variants: Mapping[str, Any]) -> Iterator[Markup]:
    """What each variant of the graph loses and costs, or why it was left out."""
    if not variants:
        return
    for name, found in variants.items():
        if not found["kept"]:
            yield banner(f"Variant {name} was left out", "careful", " ".join(found["reasons"]))
    header = ("variant", "size", "row alone as in a batch", "ms, batch 1", "ms, batch 8", "task", "rows", "metric",
              "fp32", "variant")  # fmt: skip
    rows = [
        [
            name, size(found["bytes"]) if "bytes" in found else "left out",
            {True: "same bits", False: "differs"}.get(found.get("batch_invariant"), ""),
            *(number(found["latency_ms"][batch]) if "latency_ms" in found else "" for batch in ("batch_1", "batch_8")),
            task, part["rows"], part["metric"], number(part["fp32"]), number(part["value"]),
        ]
        for name, found in variants.items()
        for task, part in found["tasks"].items()
    ]  # fmt: skip
    yield section("Variants of the graph", table(header, rows))


def _parity(payload: Payload) -> tuple[float, float | None]:
    parity: Mapping[str, Any] = payload["parity"]
    return parity["max_error"], parity.get("tolerance")


def _latency(latency: Any) -> Markup:
    if isinstance(latency, Mapping) and all(is_number(v) for v in latency.values()):
        words = {str(k).replace("_", " "): float(v) for k, v in latency.items()}
        return bars(words, {k: f"{v:.1f} ms" for k, v in words.items()})
    return tree(latency) if isinstance(latency, Mapping | list) else tag("p", value(latency))


EXPORT = Page(
    title="Export",
    about="The one ONNX graph of all tasks: does it answer as PyTorch does, and how large is it?",
    keys=frozenset({"parity"}),
    shown=frozenset({"parity", "files", "bytes", "nodes", "opset", "latency_ms", "limits", "bundle", "variants"}),
    headline=_headline,
    body=lambda payload: list(_body(payload)),
)
