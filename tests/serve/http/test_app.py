"""The application answers as the recommender does, and explains wrong requests."""

import json
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from torchrec_adrec.serve.app import build_app

from torchrec_adrec.serve.recommender import Recommender


def test_it_answers_as_the_recommender_does(finished_run: Path) -> None:
    recommender = Recommender.load(finished_run)
    user = json.loads((finished_run / "data/example_users.json").read_text())[0]
    client = TestClient(build_app(recommender))
    response = client.post("/recommend", json={"user": user, "top": 3}).json()
    expected = recommender.recommend(user, 3).ads
    assert [int(ad["ad_id"]) for ad in response["ads"]] == expected["ad_id"].to_list()
    assert [ad["click"] for ad in response["ads"]] == expected["click"].to_list()
    assert set(response["milliseconds"]) == {"encode", "retrieve", "rank", "total"}


def test_a_wrong_request_is_explained(finished_run: Path) -> None:
    client = TestClient(build_app(Recommender.load(finished_run)))
    wrong = client.post("/recommend", json={"user": {"C1": "x"}})
    assert wrong.status_code == 422 and "C1 is 'x'" in wrong.json()["detail"]
    bodies: list[dict[str, Any]] = [{"usr": {}}]
    bodies += [{"user": {"I1": True}}, {"user": {"I1": 10**30}}]
    for body in bodies:
        assert client.post("/recommend", json=body).status_code == 422
    assert client.post("/recommend", json={"user": {}, "top": 99}).status_code == 422
