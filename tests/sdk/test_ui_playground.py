"""The playground: several models side by side, whole and in streams, what each took and cost, the same request as code,
failures that stay in their column, and texts that are no HTML."""

import html
import json
import os
import re
import subprocess
import sys
from urllib.parse import urlencode

import httpx
import pytest
from conftest import create_job, create_key, upload, wait_for, wait_for_end
from test_ui_session import SCRIPTS, browser, signed_in

HOSTILE = "</textarea><script>alert(1)</script>\"'&lt; \u202eshalom"
PATH = "/ui/playground"
QUESTION = {"model": "demo", "prompt": "On Friday", "max_tokens": "12", "temperature": "0"}


@pytest.fixture(scope="module")
def acme(tenants):
    with signed_in(tenants.server, tenants.keys["acme"]) as client:
        yield client


@pytest.fixture(scope="module")
def rival(tenants):
    with signed_in(tenants.server, tenants.keys["rival"]) as client:
        yield client


@pytest.fixture(scope="module")
def tuned(tenants, tickets):
    """A finished job of acme's."""
    with tenants.client("acme") as client:
        job = create_job(client, upload(client, tickets[:12]), {"n_epochs": 1, "batch_size": 4, "learning_rate": 1e-3})
        return wait_for_end(client, job.id)


def ask(client, *models, **fields):
    """The page that answers the form."""
    form = {**QUESTION, **({"model": list(models)} if models else {}), **fields}
    return client.post(PATH, data=form)


def columns(page):
    """The columns of a page, by their models."""
    parts = page.split("<section class=\"card column\"")[1:]
    return [(html.unescape(re.search(r'data-model="([^"]*)"', part)[1]), part) for part in parts]


def answer_of(column):
    return html.unescape(re.search(r"<div class=\"answer\"[^>]*>(.*?)</div>", column, re.DOTALL)[1])


def fact(column, name):
    return html.unescape(re.search(rf'<dd data-fact="{name}">(.*?)</dd>', column)[1])


def code(column):
    """The request as a call of curl, and as Python."""
    return [html.unescape(text) for text in re.findall(r"<pre dir=\"ltr\"><code>(.*?)</code></pre>", column, re.DOTALL)]


def documents(response):
    lines = (line for line in response.iter_lines() if line.startswith("data: ") and line != "data: [DONE]")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_the_form_reads_without_javascript(acme):
    page = acme.get(PATH)
    assert page.status_code == 200 and not SCRIPTS.search(page.text)
    assert page.text.count("<h1>") == 1
    assert '<form class="card" id="ask" method="post" action="/ui/playground">' in page.text
    assert '<option value="demo">' in page.text and 'name="model" list="offered"' in page.text
    labelled = set(re.findall(r'<label[^>]* for="([^"]+)"', page.text))
    inputs = re.findall(r'<(?:input|textarea) (?!type="(?:radio|checkbox))[^>]*\bid="([^"]+)"', page.text)
    assert len(inputs) > 12 and labelled >= set(inputs)


def test_base_and_specialist_answer_side_by_side_as_the_api_does(acme, tenants, tuned):
    page = ask(acme, "demo", tuned.fine_tuned_model).text
    shown = columns(page)
    assert [model for model, _ in shown] == ["demo", tuned.fine_tuned_model]
    with tenants.client("acme") as client:
        for model, column in shown:
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "On Friday"}], max_tokens=12, temperature=0
            )
            assert answer_of(column) == answer.choices[0].message.content
            used = answer.usage
            assert re.fullmatch(
                rf"{used.prompt_tokens} read( \(\d+ from the cache\))?, {used.completion_tokens} written", fact(column, "tokens")
            )
            assert fact(column, "took").endswith(" s") and fact(column, "speed")
            cost = (used.prompt_tokens * 2.0 + used.completion_tokens * 10.0) / 1e6
            amount, currency = fact(column, "cost").split()
            assert float(amount) == pytest.approx(cost, rel=0.05) and currency == "USD"


def test_a_checkpoint_is_asked_like_any_model(acme, tenants, tuned):
    with tenants.client("acme") as client:
        (checkpoint, *_) = client.fine_tuning.jobs.checkpoints.list(tuned.id)
    name = checkpoint.fine_tuned_model_checkpoint
    ((model, column),) = columns(ask(acme, name).text)
    assert model == name and answer_of(column)


def test_a_finished_job_leads_to_its_model_beside_its_base(acme, tuned):
    page = acme.get(f"/ui/fine-tunes/{tuned.id}").text
    link = html.unescape(re.search(r'href="([^"]+)">Try it beside its base<', page)[1])
    form = acme.get(link)
    assert form.status_code == 200
    assert re.findall(r'name="model"[^>]* value="([^"]+)"', form.text) == ["demo", html.escape(tuned.fine_tuned_model)]
    assert "data-model=" not in form.text, "looking at a page asks nobody"


def test_a_stream_is_the_events_of_the_api(acme, tuned):
    form = {**QUESTION, "model": tuned.fine_tuned_model, "probabilities": "on"}
    with acme.stream("POST", PATH + "/stream", data=form, headers={"Accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        events = documents(response)
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])
    assert text == answer_of(columns(ask(acme, tuned.fine_tuned_model).text)[0][1])
    assert events[-1]["usage"]["completion_tokens"] > 0
    tokens = [token for event in events if event["choices"] for token in (event["choices"][0]["logprobs"] or {}).get("content", [])]
    assert len(tokens) == events[-1]["usage"]["completion_tokens"]
    assert all(len(token["top_logprobs"]) == 5 for token in tokens)


def test_columns_for_the_script_come_without_answers(acme):
    part = acme.post(PATH, data={**QUESTION, "model": ["demo", "demo"], "part": "columns"}).text
    assert "<html" not in part
    assert [model for model, _ in columns(part)] == ["demo", "demo"]
    for _, column in columns(part):
        assert answer_of(column) == ""
        assert 'data-price="2 2 10"' in column and 'data-currency="USD"' in column


def test_probabilities_are_there_to_hover_and_to_focus(acme):
    for form in ["chat", "text"]:
        ((_, column),) = columns(ask(acme, probabilities="on", form=form).text)
        tokens = re.findall(r'<span class="token (\w+)" tabindex="0">(.*?)<span class="tip" role="tooltip"', column, re.DOTALL)
        assert 0 < len(tokens) <= 12
        assert {sureness for sureness, _ in tokens} <= {"sure", "likely", "doubtful", "rare"}
        tips = re.findall(r'<span class="tip"[^>]*>(.*?)</span>', column, re.DOTALL)
        for tip in tips:
            percentages = [float(number) for number in re.findall(r"([\d.]+) %", tip)]
            assert 5 <= len(percentages) <= 6 and sum(percentages) < 101.5
    ((_, column),) = columns(ask(acme).text)
    assert '<details class="probabilities" open hidden>' in column, "nobody asked for them"


def test_settings_reach_the_model(acme, tenants):
    schema = {"type": "object", "properties": {"day": {"enum": ["Friday", "Monday"]}}, "required": ["day"], "additionalProperties": False}
    ((_, column),) = columns(ask(acme, schema=json.dumps(schema), max_tokens="64").text)
    assert json.loads(answer_of(column))["day"] in ["Friday", "Monday"]
    ((_, column),) = columns(ask(acme, max_tokens="3").text)
    assert fact(column, "tokens").endswith(" 3 written") and fact(column, "end") == "at the most tokens"
    whole = answer_of(columns(ask(acme).text)[0][1])
    word = whole.split()[1]
    ((_, column),) = columns(ask(acme, stop=f"{word}\r\nnever comes").text)
    assert answer_of(column) == whole.split(word)[0]
    with tenants.client("acme") as client:
        answer = client.chat.completions.create(
            model="demo", max_tokens=12, temperature=1.2, seed=4, extra_body={"top_k": 9},
            messages=[
                {"role": "system", "content": "Be brief.\nBe kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "On Friday"},
            ],
        )
    settings = {"system": "Be brief.\r\nBe kind.", "role": ["user", "assistant"], "content": ["Hi", "Hello"]}
    # Roles and messages alternate, as a browser sends them.
    pairs = [*QUESTION.items(), ("system", settings["system"]), ("role", "user"), ("content", "Hi"), ("role", "assistant"),
             ("content", "Hello"), ("temperature", "1.2"), ("seed", "4"), ("top_k", "9")]
    pairs.remove(("temperature", "0"))
    page = acme.post(PATH, content=urlencode(pairs), headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer_of(columns(page.text)[0][1]) == answer.choices[0].message.content


def test_an_answer_can_be_gone_on_with(acme):
    ((_, column),) = columns(ask(acme).text)
    button = re.search(r'<button [^>]*name="keep"[^>]*>', column)[0]
    assert 'form="ask"' in button and 'formaction="/ui/playground/go-on"' in button
    kept = html.unescape(re.search(r'value="([^"]*)"', button)[1])
    assert kept == answer_of(column)
    page = acme.post(PATH + "/go-on", data={**QUESTION, "keep": kept}).text
    messages = [html.unescape(text) for text in re.findall(r'<textarea [^>]*name="content"[^>]*>\n(.*?)</textarea>', page, re.DOTALL)]
    assert messages == ["On Friday", kept]
    assert re.search(r'<textarea id="prompt"[^>]*>\n</textarea>', page), "the next prompt is to be written"


def test_one_that_fails_leaves_the_others_alone(acme):
    # The second is unknown, the third has a name that no model has.
    page = ask(acme, "demo", "nothing", HOSTILE)
    assert page.status_code == 200
    good, unknown, hostile = (column for _, column in columns(page.text))
    assert answer_of(good) and 'role="alert" data-fault hidden' in good
    for column in [unknown, hostile]:
        assert answer_of(column) == "" and "does not exist" in column
        assert 'role="alert" data-fault hidden' not in column
    streamed = acme.post(PATH + "/stream", data={**QUESTION, "model": "nothing"})
    assert streamed.status_code == 404 and "nothing" in streamed.json()["error"]["message"]
    # A setting that the API refuses is refused in its words.
    ((_, column),) = columns(ask(acme, temperature="7").text)
    assert "temperature" in column and answer_of(column) == ""


def test_limits_are_those_of_the_key(binary, tenants):
    text, _ = create_key(binary, tenants.server.data_dir, "limited", "--rpm", "1")
    with signed_in(tenants.server, text) as client:
        page = ask(client, "demo", "demo").text
        failed = [column for _, column in columns(page) if not answer_of(column)]
        assert len(failed) == 1 and "1" in failed[0]
        told = client.post(PATH + "/stream", data=QUESTION)
        assert told.status_code == 429 and told.json()["error"]["message"]


def test_others_cannot_ask_a_model(rival, tuned):
    assert html.escape(tuned.fine_tuned_model) not in rival.get(PATH).text
    ((_, column),) = columns(ask(rival, tuned.fine_tuned_model).text)
    assert answer_of(column) == "" and "does not exist" in column
    assert rival.post(PATH + "/stream", data={**QUESTION, "model": tuned.fine_tuned_model}).status_code == 404


def test_texts_of_users_stay_texts(acme):
    page = ask(acme, "demo", HOSTILE, system=HOSTILE, prompt=HOSTILE, stop=HOSTILE, role="user", content=HOSTILE).text
    assert "<script>alert" not in page and page.count("&lt;script&gt;alert(1)") > 8
    assert not SCRIPTS.search(page)
    # A model that writes it: its answer has no other choice.
    schema = json.dumps({"enum": [HOSTILE]})
    ((_, column),) = columns(ask(acme, schema=schema, max_tokens="200", probabilities="on").text)
    assert json.loads(answer_of(column)) == HOSTILE
    assert "<script>alert" not in column


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": ""}, "Name a model"),
        ({"model": ["demo"] * 5}, "4 models"),
        ({"prompt": ""}, "Write what"),
        ({"schema": "{"}, "not JSON"),
        ({"temperature": "<b>"}, "&lt;b&gt;"),
        ({"form": "text", "system": "Be brief."}, "belongs to a chat"),
    ],
)
def test_a_form_that_cannot_be_sent_says_why_and_keeps_what_was_typed(acme, fields, words):
    form = {**QUESTION, "prompt": "Keep me", **fields}
    page = acme.post(PATH, data=form)
    assert page.status_code == 400
    fault = re.search(r'<p class="fault" id="fault" role="alert">(.*?)</p>', page.text)[1]
    assert words in fault
    assert 'aria-describedby="fault"' in page.text
    assert "data-model=" not in page.text
    assert form["prompt"] in page.text
    part = acme.post(PATH, data={**form, "part": "columns"})
    assert part.status_code == 400 and words in part.text and "<html" not in part.text
    assert acme.post(PATH + "/stream", data=form).status_code == 400


def test_the_code_asks_the_same_and_holds_no_key(acme, tenants):
    for form in ["chat", "text"]:
        page = ask(acme, prompt="It's \"Friday\" $HOME `date`\n", top_k="7", form=form).text
        assert tenants.keys["acme"] not in page
        ((_, column),) = columns(page)
        curl, python = code(column)
        assert "$ATTUNE_API_KEY" in curl and 'os.environ["ATTUNE_API_KEY"]' in python
        assert f"{tenants.url}/v1" in curl and f"{tenants.url}/v1" in python
        environment = {**os.environ, "ATTUNE_API_KEY": tenants.keys["acme"]}
        done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, timeout=60, env=environment, check=True)
        choice = json.loads(done.stdout)["choices"][0]
        assert (choice["message"]["content"] if form == "chat" else choice["text"]) == answer_of(column)
        done = subprocess.run([sys.executable, "-c", python], capture_output=True, text=True, timeout=60, env=environment, check=True)
        assert done.stdout == answer_of(column) + "\n"


def test_hanging_up_ends_the_request(acme, tenants, endless):
    def running():
        metrics = httpx.get(tenants.url + "/metrics").text
        return sum(float(value) for value in re.findall(r"^attune_running_sequences\S* (\S+)$", metrics, re.MULTILINE))

    used = lambda: sum(  # noqa: E731
        row["completion_tokens"] for row in tenants.http("acme").get("/v1/usage?group_by=").json()["data"]
    )
    before = used()
    form = {**QUESTION, "form": "text", "max_tokens": "900", "prompt": "Once upon a time", "temperature": "1.5"}
    with acme.stream("POST", PATH + "/stream", data=form) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    # The request is counted when it ends, with what was drawn by then.
    wait_for(lambda: used() > before, "the end of the request")
    wait_for(lambda: running() == 0, "the end of all sequences")


def test_the_api_does_not_know_the_cookie_and_the_page_needs_it(acme, tenants):
    (cookie,) = acme.cookies.jar
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
    answer = httpx.post(
        tenants.url + "/v1/chat/completions", json=body, headers={"Cookie": f"{cookie.name}={cookie.value}"}, timeout=60
    )
    assert answer.status_code == 401
    with browser(tenants.server) as stranger:
        assert stranger.get(PATH).status_code == 303
        told = stranger.post(PATH + "/stream", data=QUESTION, headers={"Accept": "text/event-stream"})
        assert told.status_code == 401 and told.json()["error"]["message"]
    foreign = acme.post(PATH + "/stream", data=QUESTION, headers={"Sec-Fetch-Site": "cross-site"})
    assert foreign.status_code == 403


def test_a_long_prompt_fits_and_a_longer_one_is_refused_in_words(acme):
    page = ask(acme, prompt="word " * 50_000)
    assert page.status_code == 200
    ((_, column),) = columns(page.text)
    assert "context" in column and answer_of(column) == ""
    assert ask(acme, prompt="word " * 400_000).status_code == 413


def test_texts_are_compared_by_vectors(aliased):
    with browser(aliased) as client:
        path = PATH + "/texts"
        form = client.get(path).text
        assert '<option value="encoder">' in form and '<option value="demo">' in form
        assert '<option value="reranker">' not in form, "it makes no vectors"
        texts = ["On Friday", "On Monday", "<script>alert(1)</script>"]
        page = client.post(path, data={"model": ["encoder", "demo", "reranker"], "texts": "\r\n".join(texts)})
        assert page.status_code == 200 and not SCRIPTS.search(page.text)
        assert "&lt;script&gt;alert(1)" in page.text
        encoder, demo, reranker = page.text.split('<section class="card">')[1:]
        vectors = [
            item["embedding"]
            for item in httpx.post(aliased.url + "/v1/embeddings", json={"model": "encoder", "input": texts}, timeout=60).json()["data"]
        ]
        rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", encoder, re.DOTALL)
        shown = [[float(value) for value in re.findall(r'<td class="number[^"]*">(-?[\d.]+)</td>', row)] for row in rows]
        for one, row in zip(vectors, shown, strict=True):
            for other, value in zip(vectors, row, strict=True):
                dot = sum(a * b for a, b in zip(one, other))
                length = sum(a * a for a in one) ** 0.5 * sum(b * b for b in other) ** 0.5
                assert value == pytest.approx(dot / length, abs=2e-3)
        assert "<table" in demo
        assert 'class="fault" role="alert"' in reranker and "<table" not in reranker
        assert "/v1/embeddings" in code(encoder)[0]
        assert client.post(path, data={"model": "encoder", "texts": "alone"}).status_code == 400
        # Models of vectors are not offered for answers.
        assert '<option value="encoder">' not in client.get(PATH).text
