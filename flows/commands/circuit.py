"""The command `circuit`: which layers, heads and MLPs carry the predicted change at the end of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from foretune.flows.commands.ask import base_model, read_prompt
from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.flows.commands.terminal import Terminal, styled
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run

SHOWN = 10
"""Rows of a table in the terminal."""
NAME = 34


def circuit(
    run: RunName,
    prompt: Annotated[str, typer.Option("--prompt", metavar="TEXT", help="what is asked; - reads it from stdin")],
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TOKEN", help="next token that is traced; default: the predicted likeliest"),
    ] = None,
    answered: Annotated[
        str | None, typer.Option("--answered", metavar="TEXT", help="beginning of the answer, before the traced token")
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="a system turn before it")] = None,
    points: Annotated[
        int, typer.Option("--points", metavar="N", min=1, max=128, help="of the integrals; 1: attribution patching")
    ] = 8,
    largest: Annotated[
        int | None,
        typer.Option(
            "--largest",
            metavar="N",
            min=1,
            max=200,
            help="parts put in place, and in the graph; default: 20, in place as many as 70 % take",
        ),
    ] = None,
    edges: Annotated[
        int | None, typer.Option("--edges", metavar="N", min=0, max=100_000, help="edges; default: 40 where they fit")
    ] = None,
    graph: Annotated[str | None, typer.Option("--graph", metavar="FILE", help="the graph as JSON")] = None,
    dot: Annotated[str | None, typer.Option("--dot", metavar="FILE", help="the graph as Graphviz text")] = None,
    force: Annotated[bool, typer.Option("--force", help="replace FILE if it is there")] = False,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Trace which layers, heads and MLPs carry the predicted change at the end of a prompt."""
    from foretune.storage.outputs import checked_output

    asked = read_prompt(prompt)
    places = {name: checked_output(uri, "", force) for name, uri in (("graph", graph), ("dot", dot)) if uri}
    if graph and graph == dot:
        raise BadInput(f"{graph}: is named by --graph and by --dot; give two names")
    found = named_run(run, root)
    from foretune.tasks.circuits.settings import TraceSettings

    settings = TraceSettings.model_validate({"points": points} | ({} if largest is None else {"largest": largest}))
    result = traced(found, asked, target, answered, system, edges, settings, largest is None)
    _write(places, result, settings.largest)
    print_circuit(terminal_for(quiet), result)
    finish(result | {name: place.uri for name, place in places.items()}, as_json)


def traced(
    run: Run, prompt: str, target: str | None, answered: str | None, system: str | None, edges: int | None,
    settings: Any, as_many_as_needed: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """What is traced of a run's two models. BadInput where it has no checkpoint, or its base is another one now."""
    checkpoint, samples = artifact_of(run, "checkpoint"), artifact_of(run, "samples")
    model = base_model(run, checkpoint)
    from foretune.flows.request import stored_request
    from foretune.tasks.behaviour.asking import Question, asked_prompt
    from foretune.tasks.circuits.tracing import TraceQuestion, traced_prompt

    asked, tokenizer = asked_prompt(run, model, checkpoint, samples, Question(prompt, system))
    ids = list(asked.input_ids)
    if answered:
        ids += tokenizer.backend.encode(answered, add_special_tokens=False).ids
    question = TraceQuestion(ids, target, edges, settings, as_many_as_needed)
    told = traced_prompt(run, model, checkpoint, tokenizer, question)
    name = stored_request(run).model.name_or_path.rsplit("/", 1)[-1]
    return {"run_id": run.run_id, "model": name, "prompt": prompt, "answered": answered, "system": system, **told}


def _write(places: Mapping[str, Any], result: Mapping[str, Any], largest: int) -> None:
    from foretune.storage.outputs import write_output
    from foretune.tasks.circuits.graph_file import dot_of, graph_of

    if not places:
        return
    graph = graph_of(result, largest)
    made = {"graph": json.dumps(graph, indent=1, ensure_ascii=True) + "\n", "dot": dot_of(graph)}
    for name, place in places.items():
        write_output(place, made[name].encode(errors="backslashreplace"))


def print_circuit(terminal: Terminal, result: Mapping[str, Any]) -> None:
    """What is traced, both tables, the sets that bring it, and the edges."""
    found, target, contrast = result["trace"], result["target"], result["contrast"]
    against = f" against {contrast['text']!r}" if contrast else " (the base's likeliest too)"
    terminal.say(styled(f"{target['text']!r}{against}", "bold"), f" after {len(result['input_ids']):,} tokens")
    terminal.say(
        f"{found['metric']}  {found['base']:+.3f} -> {found['predicted']:+.3f} nats, change {found['difference']:+.3f}"
    )
    _print_modules(terminal, found)
    _print_nodes(terminal, found)
    _print_edges(terminal, found)


def _print_modules(terminal: Terminal, found: Mapping[str, Any]) -> None:
    terminal.gap()
    terminal.say(styled("By weights", "bold"), ": whose change of weights makes it")
    terminal.say(styled(f"  {'':<{NAME}} {'share':>8} {'nats':>9} {'alone':>9}", "dim"), whole=True)
    for row in _largest(found["modules"]):
        alone = "" if row["alone"] is None else f"{row['alone']:+.4f}"
        terminal.say(
            f"  {_cut(row['name']):<{NAME}} {row['share']:>+8.1%} {row['score']:>+9.4f} {alone:>9}", whole=True
        )
    _sums(terminal, found["modules_sum"], found["difference"], "all modules")
    _print_set(terminal, found["module_set"], [row["name"] for row in found["modules"]], "weights")


def _print_nodes(terminal: Terminal, found: Mapping[str, Any]) -> None:
    terminal.gap()
    terminal.say(styled("By activations", "bold"), ": whose changed output carries it on")
    terminal.say(styled(f"  {'':<{NAME}} {'share':>8} {'nats':>9} {'direct':>9} {'back':>9}", "dim"), whole=True)
    for row in _largest(found["nodes"]):
        back = "" if row["back"] is None else f"{row['back']:+.4f}"
        terminal.say(
            f"  {row['name']:<{NAME}} {row['share']:>+8.1%} {row['score']:>+9.4f} {row['direct']:>+9.4f} {back:>9}",
            whole=True,
        )
    if abs(found["readout"]) > 0.005 * abs(found["difference"]):
        share = found["readout"] / found["difference"]
        terminal.say(
            f"  {'norm and unembedding at the end':<{NAME}} {share:>+8.1%} {found['readout']:>+9.4f}", whole=True
        )
    _sums(terminal, found["nodes_sum"] + found["readout"], found["difference"], "all nodes")
    _print_set(terminal, found["node_set"], [row["name"] for row in found["nodes"]], "outputs")


def _sums(terminal: Terminal, total: float, difference: float, what: str) -> None:
    """How complete the shares are."""
    terminal.say(styled(f"  {what}: {total:+.4f} of {difference:+.4f} ({total / difference:.1%})", "dim"), whole=True)


def _print_set(terminal: Terminal, chosen: Mapping[str, Any], names: Sequence[str], what: str) -> None:
    """The smallest set, what it brings, and what chance brings."""
    if not chosen["size"]:
        terminal.hanging("  ", "No part goes along with the change.")
        return
    size, random, members = chosen["size"], chosen["random"], ", ".join(str(names[at]) for at in chosen["members"])
    begun = f"The {what} of {size} of {len(names)} parts, really put into the base, bring {chosen['recovered']:.0%}"
    chance = f"; {size} random ones {sum(random) / len(random):.0%}, at most {max(random):.0%}" if random else ""
    tried = len(chosen["curve"])
    short = "" if chosen["reached"] else f" (of the {tried} largest; {chosen['wanted']:.0%} are brought by none)"
    terminal.hanging("  ", f"{begun}{chance}{short}: {members}.")


def _print_edges(terminal: Terminal, found: Mapping[str, Any]) -> None:
    if not found["edges"]:
        if found["edges_left_out"]:
            terminal.gap()
            terminal.say("Edges of so many tokens do not fit; shorten the prompt for them.")
        return
    terminal.gap()
    terminal.say(styled("Edges", "bold"), ": along which it is carried, largest first")
    names = [row["name"] for row in found["nodes"]]
    for edge in found["edges"][:SHOWN]:
        target = "the logits" if edge["target"] is None else names[edge["target"]]
        terminal.say(f"  {edge['share']:>+8.1%}  {names[edge['source']]} -> {target}", whole=True)


def _largest(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(rows, key=lambda row: -abs(row["score"]))[:SHOWN]


def _cut(name: str) -> str:
    """The end of a module's name tells it apart."""
    return name if len(name) <= NAME else f"…{name[1 - NAME :]}"
