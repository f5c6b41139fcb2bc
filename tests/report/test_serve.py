"""The table of all rows: what a query finds, and whom the server answers."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from foretune.flows.commands.serve import application, asked, served_page, served_text
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.report.row_query import PAGE, Query, RowReader
from foretune.tasks.report.rows import heldout_of, row_table, rows_view
from tests.dag import Simulated
from tests.report.browser import big_table

PLACE, TOKEN = "127.0.0.1:8700", "a-token"


@pytest.fixture(scope="module")
def reader() -> RowReader:
    return RowReader(big_table(2000), 300)


@pytest.fixture
def client(reader: RowReader) -> TestClient:
    return TestClient(application("<p>page</p>", reader, TOKEN, PLACE, "<p>features</p>"), base_url=f"http://{PLACE}")


def numbers(reader: RowReader, **query: object) -> list[int]:
    return [row["row"] for row in reader.found(Query(**query))["rows"]]  # pyright: ignore[reportArgumentType]


def test_the_worst_come_first_a_page_at_a_time(reader):
    found = reader.found(Query())
    assert found["count"] == found["total"] == 2000 and len(found["rows"]) == PAGE
    assert [row["rank"] for row in found["rows"]] == list(range(1, PAGE + 1))
    assert [row["rank"] for row in reader.found(Query(offset=1990))["rows"]] == list(range(1991, 2001))


def test_words_are_found_whatever_their_case_and_a_number_is_also_a_row(reader):
    assert numbers(reader, text="qUESTION 1234?") == [1234]
    assert set(numbers(reader, text="1999")) >= {1999}
    assert numbers(reader, text="no such words") == []
    assert numbers(reader, text="\x00") == []  # what stands between two rows


def test_every_filter_agrees_with_a_plain_reading(reader):
    rows = reader.rows.table.to_pylist()
    for query, wanted in (
        ({"flag": "too_long"}, lambda row: "too_long" in row["flags"]),
        ({"flag": "answer_mismatch"}, lambda row: row["mismatched"]),
        ({"flag": "any"}, lambda row: row["flags"] or row["mismatched"]),
        ({"flag": "none"}, lambda row: not (row["flags"] or row["mismatched"])),
        ({"verdict": "harms"}, lambda row: row["verdict"] == "harms"),
        ({"text": "word7 ", "flag": "too_long"}, lambda row: "word7 " in row["completion"] and row["flags"]),
    ):
        found = reader.found(Query(**query, order="row", limit=5000))
        assert [row["row"] for row in found["rows"]] == [row["row"] for row in rows if wanted(row)], query


@pytest.mark.slow
def test_an_order_is_that_of_the_column_both_ways(reader):
    losses = [row["loss"] for row in reader.found(Query(order="loss", limit=2000))["rows"]]
    assert losses == sorted(losses)
    down = [row["loss"] for row in reader.found(Query(order="loss", descending=True, limit=2000))["rows"]]
    assert down == losses[::-1]


def test_what_has_no_value_comes_last_both_ways():
    table = big_table(4)
    losses = pa.array([1.0, None, 3.0, 2.0])
    held = table.table.set_column(table.table.column_names.index("loss"), "loss", losses)
    reader = RowReader(dataclasses.replace(table, table=held), 100)
    assert numbers(reader, order="loss") == [0, 3, 2, 1]
    assert numbers(reader, order="loss", descending=True) == [2, 3, 0, 1]


def test_a_large_dataset_is_shown_by_its_ends_and_says_how_much_it_leaves_out():
    view = rows_view(big_table(5000), 200)
    ranks = {row["rank"] for row in view.records}
    assert view.total == 5000 and len(view.records) < 500
    assert {*range(1, 101), *range(4901, 5001)} <= ranks
    assert view.flags == {"too_long": 52, "answer_mismatch": 5}


def test_the_page_and_the_rows_are_read(client, reader):
    assert client.get("/", params={"view": TOKEN}).text == "<p>page</p>"
    assert client.get("/report.html", params={"view": TOKEN}).text == "<p>page</p>"
    assert client.get("/features.html", params={"view": TOKEN}).text == "<p>features</p>"
    found = client.get("/rows", params={"view": TOKEN, "flag": "too_long", "order": "row"}).json()
    assert found["rows"][1]["row"] == 97 and found["heldout"]["0"] == "Held out? → Yes."
    assert client.get("/rows/97", params={"view": TOKEN}).json()["rows"][0]["row"] == 97
    assert client.get("/rows/2000", params={"view": TOKEN}).status_code == 404
    table = client.get("/rows.csv", params={"view": TOKEN, "verdict": "helps", "flag": "too_long"}).text
    assert {row["verdict"] for row in csv.DictReader(io.StringIO(table))} == {"helps"}


@pytest.mark.parametrize("path", ["/", "/features.html", "/rows", "/rows/1", "/rows.csv"])
@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("", {}, 403),
        ("another", {}, 403),
        (TOKEN, {"host": "rebound.example:8700"}, 403),
        (TOKEN, {"origin": "http://other.example"}, 403),
        (TOKEN, {"sec-fetch-site": "cross-site"}, 403),
        (TOKEN, {"origin": f"http://{PLACE}", "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_only_the_page_itself_is_answered(client, path, token, headers, status):
    answer = client.get(path, params={"view": token}, headers=headers)
    assert answer.status_code == status
    assert answer.headers["cache-control"] == "no-store" and "access-control-allow-origin" not in answer.headers
    if status != 200:
        assert "row" not in answer.text.replace("browser", "")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_is_written(client, method):
    assert client.request(method, "/rows", params={"view": TOKEN}).status_code == 405


def test_a_query_that_no_page_sends_asks_for_nothing():
    assert asked({"offset": "-1", "order": "; drop", "descending": "1"}) == Query(order="; drop")
    assert asked({"offset": "9" * 40}).offset == 0 and len(asked({"text": "a" * 9999}).text) == 500


def test_a_cell_is_no_formula():
    table = big_table(2)
    formula = pa.array(["=cmd|' /C calc'!A0", "plain"])
    held = table.table.set_column(table.table.column_names.index("prompt"), "prompt", formula)
    text = "".join(RowReader(dataclasses.replace(table, table=held), 99).csv(Query(), 99))
    assert "'=cmd" in text and "\n=cmd" not in text and ",=cmd" not in text


def test_a_page_of_another_kind_is_refused_in_one_line(tmp_path):
    run = Run(str(tmp_path), "20261129-000000-old-0000")
    with pytest.raises(BadInput, match="has no report; run it again"):
        served_page(run)
    run.write_report("<html><body data-rows='page'>")
    with pytest.raises(BadInput, match="has no table of rows"):
        served_page(run)
    assert served_text("<html><body>data-rows=\"page\" default-src 'none';") is None  # text of a row, not ours


def test_the_rows_of_a_run_are_joined_by_their_number(first: Simulated):
    opened = {name: first.store.open(ref) for name, ref in first.made.items()}
    reader = RowReader(row_table(opened, heldout_of(first.step.run, opened)), 500)
    found = json.loads(reader.page(Query(order="row", limit=50)))
    texts = {row["row"]: f"{row['prompt']} → {row['completion']}" for row in first.table("samples", "samples")}
    scores = {row["row"]: row["score"] for row in first.table("influence", "influence")}
    assert {row["row"]: row["text"] for row in found["rows"]} == texts
    assert {row["row"]: row["score"] for row in found["rows"]} == scores
    assert {str(move["row"]) for row in found["rows"] for move in row["moves"]} <= set(found["heldout"])
