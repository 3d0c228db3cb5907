"""KFP component `show`: one task's metrics and confusion matrix in the form that the KFP UI draws."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def show(
    reports: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    task: str,
):
    """Copies numbers out of evaluation.json; it runs no step.

    Args:
        reports: folder with evaluation.json.
        metrics: every metric of the task; the interval's ends as `<metric>_low` and `<metric>_high`.
        confusion: true classes in rows, predicted ones in columns; left empty above 20 classes.
        task: the task's name.
    """
    import json
    from pathlib import Path

    facts = json.loads((Path(reports.path) / "evaluation.json").read_text(encoding="utf-8"))["tasks"][task]
    for name, interval in facts["metrics"].items():
        metrics.log_metric(name, interval["value"])
        metrics.log_metric(f"{name}_low", interval["low"])
        metrics.log_metric(f"{name}_high", interval["high"])
    table = facts.get("confusion")
    if table and len(table["classes"]) <= 20:
        confusion.log_confusion_matrix(table["classes"], table["counts"])
