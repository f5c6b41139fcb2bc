"""The backtest as a page: the radar, what is behind each axis, every real run, and the signals that came true."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.report.request_lines import RequestLines
from foretune.tasks.report.standalone import standalone_page


@content_task(version=2, libraries=("plotly", "jinja2"))
def backtest_report(
    draft: Any,
    run: Run,
    agreement: ArtifactRef,
    answers: ArtifactRef | None,
    suites: ArtifactRef | None,
    lines: RequestLines,
) -> None:
    """report.html of a backtest."""
    tested = run.store.open(agreement)
    answered = None if answers is None else run.store.open(answers).json("answers.json")
    behaved = None if suites is None else run.store.open(suites).json("suites.json")
    page = backtest_page(tested.json("agreement.json"), lines, tested.manifest.created, answered, behaved)
    draft.write_text("report.html", page)


def backtest_page(
    tested: dict[str, Any],
    lines: RequestLines,
    created: str,
    answered: dict[str, Any] | None = None,
    behaved: dict[str, Any] | None = None,
) -> str:
    """The page as text; `tested` is what the pass `agreement` writes, `answered` what `answer_agreement` does, and
    `behaved` what `suite_agreement` does."""
    from foretune.tasks.report.charts.radar import radar

    chart, runs = radar(tested["axes"]), tested["runs"]
    shown = ("name", "simulated", "verdict", "real_runs", "of_runs", "detail")
    return standalone_page(
        "backtest.html.jinja",
        {chart.name: chart},
        tested=tested,
        answered=answered,
        behaved=behaved,
        lines=lines,
        created=created,
        titles=[name.replace("_", " ") for name in runs[0]],
        figures=[list(each.values()) for each in runs],
        signals=[[row[name] for name in shown] for row in tested["signals"]],
        halves=[list(half.values()) for half in tested["halves"]],
    )
