"""The command `ask`: what the base and the predicted model of a run answer, one under the other."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run

if TYPE_CHECKING:
    from foretune.tasks.inputs.handles import ModelHandle

STDIN = "-"
MOST_CHARACTERS = 1_000_000
"""Of a prompt; a model reads far fewer."""


def ask(
    run: RunName,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="what is asked; - reads it from stdin")],
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="A", help="a third answer, of the difference made A times as large"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", metavar="N", min=1, max=4096, help="longest answer, in tokens")
    ] = 48,
    samples: Annotated[
        int, typer.Option("--sample", metavar="N", min=0, max=64, help="draws beside the greedy answer")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", metavar="S", min=0, max=2**62, help="of the draws")] = 0,
    temperature: Annotated[float, typer.Option("--temperature", metavar="T", help="of the draws")] = 1.0,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="a system turn before it")] = None,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Ask a run's base model and its prediction the same thing."""
    check_numbers(alpha, temperature)
    asked = read_prompt(prompt)
    found = named_run(run, root)
    from foretune.tasks.behaviour.answer_settings import GenerationSettings
    from foretune.tasks.behaviour.asking import Question

    generation = GenerationSettings(max_new_tokens=max_new_tokens, samples=samples, temperature=temperature, seed=seed)
    result = answered(found, Question(asked, system, alpha, generation))
    print_answers(terminal_for(quiet), result)
    finish(result, as_json)


def check_numbers(alpha: float | None, temperature: float) -> None:
    """BadInput for what no logits can be multiplied with."""
    if alpha is not None and not (math.isfinite(alpha) and abs(alpha) <= 1000):
        raise BadInput(f"--alpha {alpha:g}: give a number between -1000 and 1000; 1 is the prediction itself")
    if not (math.isfinite(temperature) and 0 < temperature <= 100):
        raise BadInput(f"--temperature {temperature:g}: give a number above 0, at most 100")


def read_prompt(prompt: str) -> str:
    """The prompt, from stdin where it is `-`. BadInput for an empty one, one that is no text, and one without end."""
    if prompt == STDIN:
        data = sys.stdin.buffer.read(4 * MOST_CHARACTERS + 1)
        try:
            prompt = data.decode("utf-8-sig").rstrip("\n")
        except UnicodeDecodeError as error:
            if len(data) <= 4 * MOST_CHARACTERS:
                raise BadInput(f"stdin: not UTF-8 text at byte {error.start}; give the prompt as UTF-8") from None
            prompt = " " * (MOST_CHARACTERS + 1)
    if len(prompt) > MOST_CHARACTERS:
        raise BadInput(f"the prompt has more than {MOST_CHARACTERS:,} characters; shorten it")
    if not prompt.strip():
        raise BadInput("the prompt is empty; write something to ask")
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise BadInput("the prompt holds bytes that are no UTF-8 text; give it as UTF-8") from None
    return prompt


def answered(run: Run, question: Any) -> dict[str, Any]:
    """The answers of a run's two models. BadInput where the run has no checkpoint, or its base is another one now."""
    checkpoint, samples = artifact_of(run, "checkpoint"), artifact_of(run, "samples")
    model = base_model(run, checkpoint)
    from foretune.tasks.behaviour.asking import answers_to

    return {"run_id": run.run_id, **answers_to(run, model, checkpoint, samples, question)}


def base_model(run: Run, checkpoint: Any) -> ModelHandle:
    """The model that the checkpoint was made of, as the run's request names it."""
    from foretune.flows.commands.history import History
    from foretune.flows.commands.plan import Planned
    from foretune.flows.request import stored_request
    from foretune.tasks.engine.keys import identity
    from foretune.tasks.inputs.handles import model as converted
    from foretune.tasks.inputs.sources import model_sources

    settings = stored_request(run).model
    sources = model_sources(settings)
    handle = sources.model_handle(
        lambda gguf: Planned(run, History(run.store))(converted, gguf=gguf, dtype=settings.dtype), settings
    )
    made_of = run.store.open(checkpoint).manifest.inputs["model"]["weights"]
    if identity(handle.source) != made_of:
        raise BadInput(
            f"run {run.run_id}: {settings.name_or_path} is not the model any more that its checkpoint was made of; "
            "simulate the request again"
        )
    if getattr(handle.source, "uri", "") == "":
        raise BadInput(f"run {run.run_id}: its converted model is not stored any more; simulate the request again")
    return handle


def print_answers(terminal: Terminal, result: dict[str, Any]) -> None:
    """Prompt, and every answer under its model's name."""
    titles = {"base": "base", "predicted": "predicted", "amplified": f"alpha {result['alpha'] or 0:g}"}
    for each in result["answers"]:
        draw = f"  draw {each['sample']}" if each["sample"] else ""
        terminal.gap()
        terminal.say(styled(titles[each["of"]], "bold"), styled(draw, "dim"))
        for line in (each["text"] or "(nothing)").split("\n"):
            terminal.hanging("  ", line)
        if each["stopped"] == "length":
            terminal.say(styled(f"  … cut at {result['max_new_tokens']} tokens", "dim"))
    terminal.gap()
    terminal.say(verdict(result))


def verdict(result: dict[str, Any]) -> str:
    """Where the greedy answers part, in a line."""
    if result["equal"]:
        return "Both models answer the same, token by token."
    return (
        f"They part at token {result['first_difference'] + 1}; {result['equal_share']:.0%} of the longer answer's "
        "tokens are in both."
    )
