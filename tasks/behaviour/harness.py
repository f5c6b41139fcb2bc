"""lm-evaluation-harness on an open model: its own prompts, likelihoods, answers and metrics, item by item."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretune.storage.digests import digest_of
from foretune.storage.errors import BadInput, StorageFault
from foretune.tasks.behaviour.harness_files import WHERE, is_local, task_files
from foretune.tasks.behaviour.harness_tasks import SHARES, HarnessTask
from foretune.tasks.loading.foreign import reason_of
from foretune.tasks.loading.models import building

if TYPE_CHECKING:
    from foretune.tasks.loading import LoadedModel

ROW_TOKENS = 512
"""lm-eval asks rows by the batch, whatever their length; one of these stands for a row."""
SEED = 1234
"""Of the examples before a question: lm-eval's own."""


def harness_rows(
    loaded: LoadedModel, tokenizer: Path, task: HarnessTask, limit: int, batch_tokens: int
) -> list[dict[str, Any]]:
    """The first `limit` items with their scores, in the task's order: a row each as in `suite_scores`' table."""
    with building:  # imports transformers' models, and peft
        from lm_eval import evaluator  # pyright: ignore[reportMissingImports] - optional
        from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]
        from transformers import AutoTokenizer

        model: Any = HFLM
    with _told(task), _quiet():
        with building:
            words = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
            asked = model(pretrained=loaded.model, tokenizer=words, batch_size=max(1, batch_tokens // ROW_TOKENS))
        known = _loaded_task(task)
        results: Any = evaluator.evaluate(
            asked,
            {"tasks": {task.task: known}, "groups": {}, "group_map": {}},
            limit=limit,
            log_samples=True,
            bootstrap_iters=0,  # intervals are ours, and paired
            apply_chat_template=task.chat_template,
            fewshot_as_multiturn=task.chat_template,
        )
    samples = results["samples"][task.task]
    first = samples[0]["filter"] if samples else None  # of several filters of the same answers the task's first
    return [harness_row(task, n, each) for n, each in enumerate(s for s in samples if s["filter"] == first)]


def _loaded_task(task: HarnessTask) -> Any:
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    # By its path: neither is the index of all tasks built, nor can a task of the same name stand in its place.
    known = TaskManager(include_defaults=False).load([task.path])["tasks"][task.task]
    if task.num_fewshot is not None:
        known.set_config(key="num_fewshot", value=task.num_fewshot)
    known.set_fewshot_seed(seed=SEED)
    return known


def harness_row(task: HarnessTask, number: int, sample: Mapping[str, Any]) -> dict[str, Any]:
    """One logged sample as a row. BadInput for a metric that is of all items together."""
    score: Any = sample.get(task.metric)
    if not isinstance(score, int | float) and not hasattr(score, "item"):  # a number of Python's or of numpy's
        own = [name for name in sample["metrics"] if isinstance(sample[name], int | float)]
        raise BadInput(
            f"{WHERE}: {task.task}: {task.metric} has no value of a single item; name another metric"
            + (f": {', '.join(own)}" if own else "")
        )
    nats = _likelihoods(sample)
    target = sample["target"]
    marked = task.metric in ("acc", "acc_norm") and isinstance(target, int) and 0 <= target < len(nats) > 1
    others = [value for n, value in enumerate(nats) if n != target] if marked else []
    texts = [str(each) for each in sample["filtered_resps"]] if not nats else []
    return {
        "item": f"{task.task}-{sample['doc_id']}",
        "digest": digest_of([number, sample["doc_hash"], sample["prompt_hash"], sample["target_hash"]]),
        # By it a change of an item is told: right and wrong, or a number that rises and falls.
        "scorer": ("choice" if nats else "match") if task.metric in SHARES else "loss",
        "question": str(sample["arguments"][0][0]),
        "score": float(score),
        "margin": nats[target] - max(others) if others else None,
        "right_by_sum": None,
        "log_likelihoods": nats,
        "tokens": [],
        "answer": texts[0] if texts else None,
    }


def _likelihoods(sample: Mapping[str, Any]) -> list[float]:
    """Nats per option, of a task that is scored by them."""
    found: Sequence[Any] = [each[0] for each in sample["resps"] if each]
    pairs = [each for each in found if isinstance(each, tuple | list) and len(each) == 2]
    return [float(nats) for nats, _ in pairs] if pairs and len(pairs) == len(found) else []


@contextlib.contextmanager
def _told(task: HarnessTask) -> Iterator[None]:
    """Whatever the library raises in one line: what could not be fetched, else what it says itself."""
    try:
        yield
    except (BadInput, StorageFault):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
            raise
        config = task_files(task.path).config
        if not is_local(config) and _of_fetching(error):
            data = "/".join(str(each) for each in (config.get("dataset_path"), config.get("dataset_name")) if each)
            raise BadInput(
                f"{WHERE}: task {task.task}: its data set {data} could not be fetched from the hub "
                f"({reason_of(error)}); run where the hub is reached, or give a YAML over local files"
            ) from None
        raise BadInput(
            f"{WHERE}: lm-evaluation-harness cannot ask {task.task} ({reason_of(error)}); mend the task or leave it out"
        ) from error


def _of_fetching(error: BaseException | None) -> bool:
    """Whether a library could not reach what it wanted: said by the kind of an error, or of one that led to it."""
    while error is not None:
        module = type(error).__module__.partition(".")[0]
        if isinstance(error, ConnectionError | TimeoutError | FileNotFoundError):
            return True
        if module in ("huggingface_hub", "httpx", "requests", "urllib3", "aiohttp"):
            return True
        if type(error).__name__ in ("DatasetNotFoundError", "OfflineModeIsEnabled"):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's advice and progress: text leaves by the terminal and the events alone."""
    from datasets.utils import logging as told
    from lm_eval.api import model as models  # pyright: ignore[reportMissingImports]
    from lm_eval.api import task as tasks  # pyright: ignore[reportMissingImports] - sets levels of its own
    from lm_eval.models import huggingface  # pyright: ignore[reportMissingImports]
    from tqdm import tqdm

    for module in (models, tasks, huggingface):  # bars have no other switch
        vars(module)["tqdm"] = lambda *args, **own: tqdm(*args, **own | {"disable": True})
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    bars = told.is_progress_bar_enabled()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        told.disable_progress_bar()
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            told.enable_progress_bar()
