"""What the application answers, to right requests and to wrong ones."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fake_run import IDS, USER, FakeRun, client_of, make_app
from fastapi.testclient import TestClient

from torchrec_adrec.config.serve import ServeConfig
from torchrec_adrec.errors import DataError, PredictionError
from torchrec_adrec.runs.stages import stage_folder
from torchrec_adrec.serve.http.app import App
from torchrec_adrec.serve.http.hot_swap import Served
from torchrec_adrec.serve.recommender import Recommender

JSON = {"content-type": "application/json"}
SECRET = "Zanzibar"  # what a client sends and must never read again


def post(client: TestClient, body: str, path: str = "/recommend") -> Any:
    return client.post(path, content=body, headers=JSON)


def test_it_answers_as_the_recommender_does(finished_run: Path) -> None:
    served = Served.load(finished_run)
    app = App(lambda: served, lambda: "", ServeConfig())
    with TestClient(app.asgi) as client:
        answer = client.post("/recommend", json={"user": served.examples[0], "top": 3})
    expected = Recommender.load(finished_run).recommend(served.examples[0], 3).ads
    ads = answer.json()["ads"]
    assert [int(ad["ad_id"]) for ad in ads] == expected["ad_id"].to_list()
    assert [ad["click"] for ad in ads] == expected["click"].to_list()
    manifest = json.loads(
        (stage_folder(finished_run, "index") / "manifest.json").read_text()
    )
    weights = manifest["embeddings"]["checkpoint"]["weights"]
    assert answer.json()["version"]["towers"] == weights


def test_an_answer_says_what_it_was_computed_with() -> None:
    with client_of(FakeRun(build=7)) as client:
        answer = client.post("/recommend", json={"user": USER}).json()
        assert [ad["ad_id"] for ad in answer["ads"]] == [str(i) for i in IDS[:2]]
        assert answer["version"] == {"towers": "7", "ranker": "7", "index": "7"}
        assert set(answer["milliseconds"]) == {
            *("queue", "encode", "retrieve", "rank", "total")
        }
        assert client.get("/ready").json()["version"]["index"] == "7"
        assert client.get("/health").json() == {"status": "ok"}


def test_a_batch_is_answered_in_the_order_of_its_users() -> None:
    run = FakeRun()
    users = [{"age": age} for age in range(5)]
    with client_of(run) as client:
        answers = client.post("/batch", json={"users": users, "top": 1}).json()
    assert run.users == users
    ages = [[ad["score"] for ad in answer["ads"]] for answer in answers["answers"]]
    assert ages == [[0], [1], [2], [3], [4]], "each user gets what is its own"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"user": {"age": NaN}}', 422, "age: expected a number"),
        ('{"user": {"age": -Infinity}}', 422, "age: expected a number"),
        ('{"user": {"age": 1e400}}', 422, "age: expected a number"),
        ('{"user": {"age": true}}', 422, "age: expected a number"),
        (f'{{"user": {{"age": {10**30}}}}}', 422, "age: expected a number"),
        (f'{{"user": {{"age": "{SECRET}"}}}}', 422, "age: expected a number"),
        (f'{{"user": {{"device": "{SECRET}"}}}}', 422, "device: expected eight hex"),
        ('{"user": {"city": 3}}', 422, "city: expected a text"),
        ('{"user": {"city": "' + 1001 * "x" + '"}}', 422, "at most 1000 characters"),
        ('{"user": {"seen_brands": [1, 2]}}', 422, "a list of at most 1000 texts"),
        (f'{{"user": {{"seen_brands": {["x"] * 1001}}}}}', 422, "no JSON"),
        (f'{{"user": {{"{SECRET}": 1}}}}', 422, "1 unknown columns, expected some of"),
        (f'{{"user": {{}}, "{SECRET}": 1}}', 422, "unknown keys"),
        (f'{{"user": "{SECRET}"}}', 422, "user: Input should be a valid dictionary"),
        ('{"user": {}, "top": 4}', 422, "top: Input should be less than or equal to 3"),
        ('{"user": {}, "top": true}', 422, "top: Input should be a valid integer"),
        ('{"user": {}, "top": 1e400}', 422, "top: Input should be a valid integer"),
        ('{"user": {}, "top": 1.5}', 422, "top: Input should be a valid integer"),
        ('{"user": {}', 422, "the body is no JSON"),
        (60_000 * "[", 400, "error parsing the body"),
        ('{"user": {"city": ' + 9_000 * "[" + 9_000 * "]" + "}}", 400, "error parsing"),
        ("[]", 422, "expected an object"),
        ("", 422, "body: Field required"),
    ],
)
def test_a_wrong_request_is_explained_and_never_repeated(
    body: str, status: int, message: str
) -> None:
    run = FakeRun()
    with client_of(run) as client:
        answer = post(client, body)
    assert answer.status_code == status and message in answer.json()["detail"]
    assert SECRET not in answer.text and len(answer.content) < 700
    assert not run.users, "it was refused before it was computed"


def test_a_whole_number_is_an_integer_as_json_has_it() -> None:
    with client_of(FakeRun()) as client:
        assert len(post(client, '{"user": {}, "top": 1.0}').json()["ads"]) == 1


def test_bytes_that_are_no_text_are_refused() -> None:
    with client_of(FakeRun()) as client:
        answer = client.post("/recommend", content=b'{"user": "\xff"}', headers=JSON)
        assert answer.status_code == 400
        answer = post(client, '{"user": {"city": "\\ud800"}}')
        assert answer.status_code == 422


def test_a_prediction_that_is_not_finite_names_model_and_columns() -> None:
    error = PredictionError("the ranker's prediction of click is not finite")
    with client_of(FakeRun(error=error)) as client:
        answer = client.post("/recommend", json={"user": {"city": SECRET, "age": 3}})
    detail = answer.json()["detail"]
    assert answer.status_code == 500 and SECRET not in detail
    assert "ranker" in detail and "city (text)" in detail and "age (number)" in detail


def test_what_the_recommender_refuses_is_the_clients_error_and_not_repeated() -> None:
    with client_of(FakeRun(error=DataError(f"age is {SECRET}"))) as client:
        answer = client.post("/recommend", json={"user": {}})
    assert answer.status_code == 422 and SECRET not in answer.text


def test_a_token_is_asked_for_but_where_the_server_is_watched() -> None:
    with client_of(FakeRun(), token="t0ken") as client:
        for value in (b"", b"Bearer t0keN", b"Bearer t0ken ", b"\xe9"):
            headers = {"authorization": value}
            answer = client.post("/recommend", json={"user": {}}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.get("/ready").status_code == 200
        right = {"authorization": "Bearer t0ken"}
        answer = client.post("/recommend", json={"user": {}}, headers=right)
        assert answer.status_code == 200


def test_metrics_count_requests_stages_and_versions() -> None:
    with client_of(FakeRun(build=3)) as client:
        client.post("/recommend", json={"user": {}})
        client.get(f"/{SECRET}")
        text = client.get("/metrics").text
    for line in (
        'adrec_requests_total{path="/recommend",status="200"} 1.0',
        'adrec_requests_total{path="other",status="404"} 1.0',
        'adrec_stage_seconds_count{stage="rank"} 1.0',
        'adrec_version_info{index="3",ranker="3",towers="3"} 1.0',
        "adrec_newest_version_served 1.0",
    ):
        assert line in text
    assert SECRET not in text


def test_gauges_are_true_although_nobody_asked_this_worker() -> None:
    app = make_app(FakeRun(build=3))
    with TestClient(app.asgi) as client:
        client.get("/health")
        value = app.metrics.registry.get_sample_value
        assert value("adrec_newest_version_served") == 1.0


def test_every_user_of_a_batch_counts_in_the_metrics_and_one_line_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "torchrec_adrec.access")
    with client_of(FakeRun(seconds=0.02)) as client:
        answers = client.post("/batch", json={"users": [{}] * 3}).json()["answers"]
        text = client.get("/metrics").text
    assert 'adrec_stage_seconds_count{stage="rank"} 3.0' in text
    assert 'adrec_stage_seconds_sum{stage="rank"} 0.003' in text
    stages = json.loads(caplog.records[0].getMessage())["stages"]
    assert stages["rank"] == 3.0
    waits = [answer["milliseconds"]["queue"] for answer in answers]
    assert stages["queue"] == max(waits), "they waited at the same time"


def test_a_bug_is_answered_in_the_form_of_every_error() -> None:
    app = make_app(FakeRun(error=KeyError(SECRET)))
    with TestClient(app.asgi, raise_server_exceptions=False) as client:
        answer = client.post("/recommend", json={"user": {}})
    assert answer.status_code == 500 and "the log" in answer.json()["detail"]
    assert SECRET not in answer.text


def test_a_path_is_right_or_it_is_none() -> None:
    with client_of(FakeRun()) as client:
        answer = client.post("/recommend/", headers={"host": SECRET})
    assert answer.status_code == 404 and SECRET not in str(answer.headers)


def test_the_access_log_is_json_with_stages_and_without_the_clients_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "torchrec_adrec.access")
    with client_of(FakeRun()) as client:
        answer = client.post("/recommend", json={"user": {"city": SECRET}})
        client.get(f"/{SECRET}?{SECRET}")
    lines = [
        json.loads(record.getMessage())
        for record in caplog.records
        if record.name == "torchrec_adrec.access"
    ]
    assert [line["path"] for line in lines] == ["/recommend", "other"]
    assert lines[0]["stages"]["rank"] == 1.0
    assert lines[0]["id"] == answer.headers["x-request-id"]
    assert SECRET not in caplog.text


def test_the_docs_page_loads_nothing_from_anywhere() -> None:
    with client_of(FakeRun()) as client:
        page = client.get("/docs").text
        assert client.get("/redoc").status_code == 404
    assert "//" not in page and "<script" not in page
    assert "seen_brands" in page and "POST /recommend" in page


def test_openapi_names_types_and_shows_the_columns_of_a_user() -> None:
    with client_of(FakeRun()) as client:
        openapi = client.get("/openapi.json").json()
    columns = openapi["components"]["schemas"]["User"]
    assert set(columns["properties"]) == set(USER)
    assert columns["additionalProperties"] is False
    assert columns["properties"]["city"]["examples"] == ["Delft"]
    kinds = [part["type"] for part in columns["properties"]["age"]["anyOf"]]
    assert kinds == ["number", "string", "null"]
    for path in ("/recommend", "/batch"):
        answers = openapi["paths"][path]["post"]["responses"]
        assert set(answers) == {
            *("200", "400", "401", "408", "413", "422", "429", "500")
        }
        error = answers["422"]["content"]["application/json"]["schema"]["$ref"]
        assert error.endswith("/Fault")
