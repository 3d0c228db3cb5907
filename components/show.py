"""KFP component `show`: one task's metrics, confusion matrix and page in the form that the KFP UI draws."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def show(
    reports: dsl.Input[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
    page: dsl.Output[dsl.HTML],
    task: str,
):
    """Copies numbers out of evaluation.json; it runs no step.

    Args:
        reports: folder with evaluation.json.
        metrics: every metric of the task; the interval's ends as `<metric>_low` and `<metric>_high`; where a champion
            answered the same rows, the primary metric's change against it as `champion_change`, `champion_change_low`
            and `champion_change_high`, and the champion's own value as `champion_<metric>`.
        confusion: true classes in rows, predicted ones in columns; left empty above 20 classes.
        page: everything that evaluation.json says of the task, for people.
        task: the task's name.
    """
    import json
    from pathlib import Path

    from mtlops.report import task_page

    evaluation = json.loads((Path(reports.path) / "evaluation.json").read_text(encoding="utf-8"))
    facts = evaluation["tasks"][task]
    for name, interval in facts["metrics"].items():
        metrics.log_metric(name, interval["value"])
        metrics.log_metric(f"{name}_low", interval["low"])
        metrics.log_metric(f"{name}_high", interval["high"])
    champion = facts.get("champion")
    if champion:
        metrics.log_metric(f"champion_{facts['primary']}", champion["metrics"][facts["primary"]]["value"])
        metrics.log_metric("champion_change", champion["change"]["value"])
        metrics.log_metric("champion_change_low", champion["change"]["low"])
        metrics.log_metric("champion_change_high", champion["change"]["high"])
    table = facts.get("confusion")
    if table and len(table["classes"]) <= 20:
        confusion.log_confusion_matrix(table["classes"], table["counts"])
    Path(page.path).write_text(task_page(evaluation, task), encoding="utf-8")
