"""Usage: what the server adds up is what its answers said, for everyone who used it and nobody else."""

import httpx
import openai
import pytest
from conftest import QUICK, create_job, create_key, sdk, upload, wait_for, wait_for_end

# Money per million tokens; the fixture `tenants` sets these.
PROMPT, COMPLETION, TRAINING = 2.0, 10.0, 5.0
COUNTS = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "trained_tokens")


def usage(tenants, name, **query):
    with tenants.http(name) as http:
        answer = http.get("/v1/usage", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def spender(binary, tenants):
    """A new organisation with a key of its own: its client, its key, and a function that reads its sums."""
    spender.number = getattr(spender, "number", 0) + 1
    organization = f"spender-{spender.number}"
    text, key = create_key(binary, tenants.server.data_dir, organization)

    class Spender:
        client = sdk(tenants.server, text)
        headers = {"Authorization": f"Bearer {text}"}
        id = key
        name = organization

        def report(self, **query):
            answer = httpx.get(tenants.url + "/v1/usage", headers=self.headers, params=query)
            assert answer.status_code == 200, answer.text
            return answer.json()

        def sums(self):
            rows = self.report(group_by="")["data"]
            assert len(rows) <= 1
            return {name: rows[0][name] if rows else 0 for name in COUNTS}

    return Spender()


def test_sums_are_those_of_the_answers(spender, endless):
    client, answers = spender.client, []
    chat = {"model": "demo", "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 7}
    answers.append(client.chat.completions.create(**chat).usage)
    answers.append(client.chat.completions.create(**chat, n=3).usage)
    answers.append(client.completions.create(model="demo", prompt=["One", "Two and more"], max_tokens=5).usage)
    answers.append(client.completions.create(model="demo", prompt="Nothing", max_tokens=0).usage)
    stream = client.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    answers.append([chunk.usage for chunk in stream][-1])
    silent = client.completions.create(model="demo", prompt="One", max_tokens=5, stream=True, logit_bias=endless)
    for _ in silent:
        pass
    # The same unstreamed, whose usage stands for the stream that told none.
    answers.append(client.completions.create(model="demo", prompt="One", max_tokens=5, logit_bias=endless).usage)
    answers.append(answers[-1])
    vectors = client.embeddings.create(model="demo", input=["a", "b and c"])

    assert spender.sums() == {
        "requests": len(answers) + 1,
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers) + vectors.usage.prompt_tokens,
        "cached_tokens": spender.sums()["cached_tokens"],
        "completion_tokens": sum(answer.completion_tokens for answer in answers),
        "trained_tokens": 0,
    }


def test_what_was_refused_is_not_counted(spender):
    with pytest.raises(openai.BadRequestError):
        spender.client.completions.create(model="demo", prompt="a", max_tokens=10_000_000)
    with pytest.raises(openai.NotFoundError):
        spender.client.completions.create(model="none", prompt="a")
    with pytest.raises(openai.BadRequestError):
        spender.client.embeddings.create(model="demo", input="")
    spender.client.models.list()
    assert spender.report(group_by="")["data"] == []


def test_who_hangs_up_pays_for_what_was_computed(spender, tenants, endless):
    body = {"model": "demo", "prompt": "The ship", "max_tokens": 900, "n": 8, "stream": True, "logit_bias": endless}
    with httpx.stream("POST", tenants.url + "/v1/completions", json=body, headers=spender.headers) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data:"))
        for _ in range(5):
            next(lines)
    sums = wait_for(lambda: spender.report(group_by="")["data"], "the account of the client that hung up")[0]
    assert sums["requests"] == 1
    assert sums["prompt_tokens"] > 0
    assert 5 <= sums["completion_tokens"] < 8 * 900


def test_a_jobs_tokens_are_charged_to_its_key_once(spender, tickets):
    client = spender.client
    job = wait_for_end(client, create_job(client, upload(client, tickets[:40]), {**QUICK, "n_epochs": 1}).id)
    assert job.status == "succeeded", job.error
    assert job.trained_tokens > 0
    (row,) = spender.report(group_by="model,key")["data"]
    assert (row["model"], row["key"], row["trained_tokens"]) == ("demo", spender.id, job.trained_tokens)
    assert row["cost"] == pytest.approx(job.trained_tokens * TRAINING / 1e6)

    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": "Hello"}], max_tokens=5
    )
    rows = {row["model"]: row for row in spender.report(group_by="model")["data"]}
    used = rows[job.fine_tuned_model]
    assert used["completion_tokens"] == answer.usage.completion_tokens
    assert used["cost"] == pytest.approx(cost(used)), "a fine-tuned model costs what its base costs"


def cost(row):
    """Where nothing is cached."""
    return (row["prompt_tokens"] * PROMPT + row["completion_tokens"] * COMPLETION) / 1e6


def test_tokens_have_a_price(spender):
    spender.client.completions.create(model="demo", prompt="The ship sails", max_tokens=9)
    report = spender.report()
    assert report["currency"] == "USD"
    (row,) = report["data"]
    assert row["cost"] > 0
    assert row["cost"] == pytest.approx(cost(row))


def test_rows_are_grouped_as_asked(spender):
    spender.client.completions.create(model="demo", prompt="a", max_tokens=1)
    report = spender.report()
    (row,) = report["data"]
    assert row["day"] and report["start_date"] < row["day"] <= report["end_date"]
    assert (row["model"], row["key"], row["organization"]) == ("demo", None, spender.name)
    (row,) = spender.report(group_by="key")["data"]
    assert (row["day"], row["model"], row["key"]) == (None, None, spender.id)
    assert spender.report(start_date="2020-01-01", end_date="2020-01-31")["data"] == []
    day = report["data"][0]["day"]
    assert spender.report(start_date=day, end_date=day)["data"] == report["data"]


def test_pages_meet(tenants, binary):
    for number in range(3):
        text, _ = create_key(binary, tenants.server.data_dir, f"page-{number}")
        sdk(tenants.server, text).completions.create(model="demo", prompt="a", max_tokens=1)
    query = {"organization": "*", "group_by": "model"}
    whole = usage(tenants, "admin", **query)["data"]
    assert len(whole) >= 3
    pages, page = [], {}
    while True:
        report = usage(tenants, "admin", **query, limit=1, **page)
        pages += report["data"]
        if not report["has_more"]:
            assert report["next_page"] is None
            break
        page = {"page": report["next_page"]}
    assert [row["organization"] for row in pages] == [row["organization"] for row in whole]


def test_other_organisations_are_for_admins(tenants, spender):
    spender.client.completions.create(model="demo", prompt="a", max_tokens=1)
    for organization in ("*", spender.name, "nobody"):
        with tenants.http("rival") as http:
            answer = http.get("/v1/usage", params={"organization": organization})
        assert answer.status_code == 403
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "insufficient_permissions")
    assert usage(tenants, "rival", organization="rival")
    assert all(row["organization"] == "rival" for row in usage(tenants, "rival")["data"])
    assert usage(tenants, "admin", organization=spender.name)["data"] == spender.report()["data"]
    everyone = usage(tenants, "admin", organization="*", group_by="")["data"]
    assert spender.name in {row["organization"] for row in everyone}


@pytest.mark.parametrize(
    "query",
    [
        {"start_date": "yesterday"},
        {"start_date": "2026-02-30"},
        {"start_date": "2026-02-02", "end_date": "2026-02-01"},
        {"end_date": "-009999-01-01"},
        {"group_by": "hour"},
        {"limit": 0},
        {"limit": 10_001},
        {"limit": "many"},
        {"page": "-1"},
        {"page": "x"},
    ],
)
def test_a_wrong_question_is_a_400(tenants, query):
    with tenants.http("acme") as http:
        answer = http.get("/v1/usage", params=query)
    assert answer.status_code == 400, answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_usage_is_kept_when_the_server_stops(start_server):
    server = start_server(settings={"ATTUNE_PRICES": "{other={prompt=1.0}}", "ATTUNE_CURRENCY": "EUR"})
    answer = sdk(server).completions.create(model="demo", prompt="The ship", max_tokens=5)
    server.stop()
    server = start_server(data_dir=server.data_dir, settings={"ATTUNE_CURRENCY": "EUR"})
    report = httpx.get(server.url + "/v1/usage", params={"group_by": "key"}).json()
    (row,) = report["data"]
    assert (row["key"], row["completion_tokens"]) == ("local", answer.usage.completion_tokens)
    assert (report["currency"], row["cost"]) == ("EUR", None)
    server.stop()
