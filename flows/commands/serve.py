"""The report over all rows behind a small server: this machine alone, reading alone, with a token in its address."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from foretune.flows.commands.options import Json, Quiet, Root, RunName, finish, named_run, terminal_for
from foretune.storage.errors import BadInput

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from foretune.storage.runs import Run
    from foretune.tasks.report.row_query import Query, RowReader

HOST = "127.0.0.1"
WHOLE_TEXT = 20_000
"""Characters of a row's text in its pane, and in a CSV file."""
LONGEST_SEARCH = 500
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(
    run: RunName,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free")] = 0,
    root: Root = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show a run's report with all its rows, to this machine alone, until it is stopped."""
    found = named_run(run, root)

    def ready(address: str) -> None:
        terminal_for(quiet).say(f"{address}  (Ctrl-C stops it)", whole=True)
        finish({"run_id": found.run_id, "address": address}, as_json)

    serve_report(found, port, ready)


def serve_report(run: Run, port: int, ready: Callable[[str], None], features: str | None = None) -> None:
    """Answer until the process is stopped; `ready` is called with the report's address or, where that page is given,
    with that of the feature browser. BadInput for a port in use."""
    import uvicorn

    page = served_page(run)
    reader = reader_of(run)
    token = secrets.token_urlsafe(24)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
    except OSError as error:
        raise BadInput(f"--port {port}: {error.strerror or error}; give another, or 0 for any that is free") from None
    place = f"{HOST}:{listening.getsockname()[1]}"
    served = application(page, reader, token, place, features or run.read_features())
    config = uvicorn.Config(served, log_level="critical", access_log=False)
    # In a thread: uvicorn would take the signals for itself, which end the whole command here.
    thread = threading.Thread(target=uvicorn.Server(config).run, args=([listening],), name="serve", daemon=True)
    thread.start()
    ready(f"http://{place}/{'features.html' if features else ''}?view={token}")
    thread.join()


def served_page(run: Run) -> str:
    """The run's report, told to ask its server for rows. BadInput for a page that cannot."""
    try:
        page = run.read_report()
    except FileNotFoundError:
        raise BadInput(f"run {run.run_id} has no report; run it again") from None
    told = served_text(page)
    if told is None:
        raise BadInput(
            f"run {run.run_id}: its report has no table of rows (a backtest's, or an older one); simulate again"
        )
    return told


def served_text(page: str) -> str | None:
    """The page of a file as that of a server; None for a page without a table of rows."""
    head, mark, rest = page.partition('data-rows="page"')
    policy = "default-src 'none';"
    if not mark or "<body" in head or policy not in rest:
        return None
    return f'{head}data-rows="served"' + rest.replace(policy, f"{policy} connect-src 'self';", 1)


def reader_of(run: Run) -> RowReader:
    """The table of all rows of a finished run."""
    from foretune.flows.request import stored_request
    from foretune.storage.results import artifact_of, finished_result
    from foretune.tasks.report.row_query import READ, RowReader

    made = finished_result(run).get("artifacts", {})
    artifacts = {name: artifact_of(run, name) for name in READ if name in made}
    return RowReader.of(run, artifacts, stored_request(run).report.text_limit)


def application(page: str, reader: RowReader, token: str, place: str, features: str | None = None) -> Starlette:
    """Addresses, all of them read: the report, the feature browser, a page of rows, one row, and rows as CSV."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, Response, StreamingResponse
    from starlette.routing import Route

    def report(request: Request) -> Response:
        return HTMLResponse(page)

    def rows(request: Request) -> Response:
        return Response(reader.page(asked(request.query_params)), media_type="application/json")

    def browser(request: Request) -> Response:
        return HTMLResponse(features) if features else Response("this run has no SAE\n", 404, media_type="text/plain")

    def row(request: Request) -> Response:
        found = reader.one(request.path_params["number"], WHOLE_TEXT)
        return Response(found or "{}", 200 if found else 404, media_type="application/json")

    def table(request: Request) -> Response:
        lines = reader.csv(asked(request.query_params), WHOLE_TEXT)
        return StreamingResponse(lines, media_type="text/csv; charset=utf-8")

    def guarded(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def guard(request: Request) -> Response:
            refused = refusal(request.headers, request.query_params.get("view", ""), token, place)
            answered = Response(refused, 403, media_type="text/plain") if refused else answer(request)
            answered.headers.update(HEADERS)
            return answered

        return guard

    pages = {"/": report, "/report.html": report, "/features.html": browser}
    paths = {**pages, "/rows": rows, "/rows/{number:int}": row, "/rows.csv": table}
    return Starlette(routes=[Route(path, guarded(answer), methods=["GET"]) for path, answer in paths.items()])


def asked(parameters: Mapping[str, str]) -> Query:
    """What the page's script asks for; anything else is as if it had asked for nothing."""
    from foretune.tasks.report.row_query import Query

    offset = parameters.get("offset", "0")
    return Query(
        text=parameters.get("text", "")[:LONGEST_SEARCH],
        flag=parameters.get("flag", ""),
        verdict=parameters.get("verdict", ""),
        order=parameters.get("order", "rank"),
        descending=parameters.get("descending") == "true",
        offset=int(offset) if offset.isdecimal() and len(offset) < 10 else 0,
    )


def refusal(headers: Mapping[str, str], given: str, token: str, place: str) -> str:
    """Why a request is not answered, or nothing: another name of this machine, another page, or no token."""
    if headers.get("host") != place:
        return "only under the address that foretune serve printed\n"
    if headers.get("origin", f"http://{place}") != f"http://{place}":
        return "not for other pages\n"
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return "not for other pages\n"
    if not secrets.compare_digest(given.encode(), token.encode()):
        return "the token of the address is missing or wrong; foretune serve printed it\n"
    return ""
