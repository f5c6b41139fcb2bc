"""The figures that are stored are those of a whole campaign, and nothing in it was outside the contract."""

from __future__ import annotations

import json

from tests.hostile.record import HERE

GENERATED, WRITTEN = 2000, 300


def test_the_stored_campaign_was_whole_and_held():
    kept = json.loads((HERE / "hostile.json").read_text())
    tried = {"written": 0, "guided": 0, "generated": 0}
    for each in kept:
        sort = each["kind"].partition(":")[0]
        tried[sort if sort in tried else "generated"] += each["tried"]
        assert each["held"] + each["failed"] == each["tried"] > 0 and len(each["left"]) == each["failed"], each["kind"]
        assert not each["failed"], each["left"]
    assert tried["generated"] >= GENERATED and tried["written"] >= WRITTEN and tried["guided"], tried
