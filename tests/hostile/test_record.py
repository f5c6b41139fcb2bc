"""The figures that are stored are those of a whole campaign in which nothing broke the contract."""

from __future__ import annotations

import json

from tests.hostile.record import HERE

GENERATED, WRITTEN = 2000, 300


def test_the_stored_campaign_was_whole_and_all_of_it_held():
    kept = json.loads((HERE / "hostile.json").read_text())
    tried = {"written": 0, "guided": 0, "generated": 0}
    for each in kept:
        sort = each["kind"].partition(":")[0]
        tried[sort if sort in tried else "generated"] += each["tried"]
        assert (each["failed"], each["left"]) == (0, []) and each["held"] == each["tried"] > 0, each["kind"]
    assert tried["generated"] >= GENERATED and tried["written"] >= WRITTEN, tried
