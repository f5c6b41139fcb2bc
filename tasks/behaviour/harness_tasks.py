"""Tasks of lm-evaluation-harness as suites: which are asked, what stands for them in keys, and which way is better."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.harness_files import WHERE, task_files
from foretune.tasks.behaviour.harness_settings import HarnessChoice
from foretune.tasks.behaviour.items import Direction, Suite
from foretune.tasks.behaviour.settings import NAME, BehaviourSettings

SHARES = ("acc_norm", "acc", "exact_match")
"""Metrics of right and wrong items, the one that is taken first before the others."""
BY_OUTPUT = {"multiple_choice": ["acc", "acc_norm"], "loglikelihood": ["acc"], "generate_until": ["exact_match"]}
"""What lm-eval measures where a task names no metric."""


class HarnessTask(BaseModel, frozen=True):
    """A task as the input of a pass: it stands in keys by what its files say and by how it is asked."""

    suite: str
    task: str
    path: str
    content: str  # digest of its files
    metric: str
    limit: int
    num_fewshot: int | None = None
    chat_template: bool = False

    def identity(self) -> Any:
        return [self.content, self.metric, self.limit, self.num_fewshot, self.chat_template]

    @property
    def label(self) -> str:
        """What the pass is called for people."""
        return self.suite

    @property
    def work(self) -> tuple[int, int]:
        """Items at most; how long they are is known when they are asked."""
        return self.limit, 0


def harness_suites(settings: BehaviourSettings) -> list[tuple[Suite, HarnessTask]]:
    """The tasks that a request names. BadInput for one that is not there, or that does not score items."""
    if not settings.enabled or not settings.lm_eval:
        return []
    found = [_suite(HarnessChoice(task=each) if isinstance(each, str) else each, settings) for each in settings.lm_eval]
    names = [each if isinstance(each, str) else each.name for each in settings.suites]
    names += [suite.name for suite, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise BadInput(
            f"{WHERE}: suite {twice[0]} is named twice; give each its own name, as in {{task: .., name: ..}}"
        )
    return found


def _suite(choice: HarnessChoice, settings: BehaviourSettings) -> tuple[Suite, HarnessTask]:
    files = task_files(choice.task)
    name = choice.name or re.sub(r"[^a-z0-9_-]", "_", files.config["task"].lower())
    if not NAME.match(name):
        raise BadInput(f"{WHERE}: suite {name[:80]!r}: a name has small letters, digits, _ and -, at most 64")
    metric, higher = _metric(choice, files.config)
    direction: Direction = "either" if higher is None else "higher" if higher else "lower"
    suite = Suite(
        name=name,
        measures=f"{metric} of lm-evaluation-harness",
        direction=direction,
        unit="share right" if metric in SHARES else metric,
        source=f"lm-evaluation-harness {importlib.metadata.version('lm_eval')}: {files.config['task']}",
    )
    task = HarnessTask(
        suite=name,
        task=files.config["task"],
        path=str(files.path),
        content=files.digest,
        metric=metric,
        limit=choice.limit or settings.items,
        num_fewshot=choice.num_fewshot,
        chat_template=choice.chat_template,
    )
    return suite, task


def _metric(choice: HarnessChoice, config: Mapping[str, Any]) -> tuple[str, bool | None]:
    """The metric that an item's score is, and whether more of it is better; None where nobody says."""
    output = str(config.get("output_type", "generate_until"))
    listed = config.get("metric_list")
    told: dict[str, Any] = {}
    for each in listed if isinstance(listed, list) else BY_OUTPUT.get(output, []):
        entry = each if isinstance(each, dict) else {"metric": each}
        # A metric may be a function; its values go by the function's name.
        told[str(entry.get("metric")).rpartition(".")[2]] = entry.get("higher_is_better")
    if choice.metric is not None and choice.metric not in told:
        raise BadInput(f"{WHERE}: {choice.task} has no metric {choice.metric}; it has {', '.join(told) or 'none'}")
    metric = choice.metric or next((each for each in SHARES if each in told), next(iter(told), None))
    if metric is None:
        raise BadInput(f"{WHERE}: {choice.task} names no metric; add metric_list to its YAML")
    higher = told[metric]
    return metric, bool(higher) if isinstance(higher, bool) else True if metric in SHARES else None
