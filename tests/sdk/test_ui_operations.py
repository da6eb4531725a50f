"""Operations on the page: for admins alone; keys are made, limited and revoked there."""

import re

import httpx
import pytest
from conftest import create_job, create_key, keys_command, upload, wait_for
from test_ui_session import SCRIPTS, signed_in

HOSTILE = "<script>alert(1)</script>\"'&lt; x"
KEYS = "/ui/operations/keys"
REFUSED = 40


@pytest.fixture(scope="module")
def admin(tenants):
    with signed_in(tenants.server, tenants.keys["admin"]) as client:
        yield client


@pytest.fixture(scope="module")
def acme(tenants):
    with signed_in(tenants.server, tenants.keys["acme"]) as client:
        yield client


def make(admin, /, **fields):
    """Makes a key by the form; returns its text and its id."""
    answer = admin.post(KEYS, data=fields)
    assert answer.status_code == 200, answer.text
    text = re.search(r'id="text" value="(sk-attune-[A-Za-z0-9]+)"', answer.text)[1]
    return text, re.search(r"key_\w+", answer.text)[0]


def row(admin, key):
    """The row of a key in the list."""
    path = KEYS + "?limit=500"
    (row,) = [row for row in admin.get(path).text.split("<tr>") if f">{key}<" in row]
    return row


def status(tenants, text):
    return httpx.get(tenants.url + "/v1/models", headers={"Authorization": f"Bearer {text}"}).status_code


def test_only_admins_see_it(acme, admin, tenants):
    for path in ["/ui/operations", KEYS]:
        answer = acme.get(path)
        assert answer.status_code == 403 and "admin key" in answer.text
        assert admin.get(path).status_code == 200
    assert "Operations" not in acme.get("/ui/fine-tunes").text
    assert "Operations" in admin.get("/ui/fine-tunes").text
    id = tenants.ids["rival"]
    for path, form in [
        (KEYS, {"organization": "acme", "admin": "yes"}),
        (f"{KEYS}/{id}", {"action": "limit", "requests_per_minute": "1"}),
        (f"{KEYS}/{id}", {"action": "revoke", "sure": "yes"}),
    ]:
        assert acme.post(path, data=form).status_code == 403, path
    assert status(tenants, tenants.keys["rival"]) == 200


def test_it_shows_engines_queue_memory_adapters_and_errors(admin, tenants, tickets):
    with tenants.client("acme") as client:
        client.completions.create(model="demo", prompt="Hello", max_tokens=3)
        job = create_job(client, upload(client, tickets), {"n_epochs": 50, "batch_size": 1, "learning_rate": 1e-4})
        # The page shows what fails most; other tests make this server refuse much, each of them a few times.
        for _ in range(REFUSED):
            assert httpx.get(tenants.url + "/v1/files/file-nothing").status_code == 401
        page = admin.get("/ui/operations")
        client.fine_tuning.jobs.cancel(job.id)
    assert page.status_code == 200 and not SCRIPTS.search(page.text)
    text = page.text
    assert text.count("<h1>") == 1
    engine = next(row for row in text.split("<tr>") if "<bdi>demo</bdi>" in row)
    steps = re.search(r'data-label="Steps, last hour">([\d,]+)<', engine)[1]
    assert int(steps.replace(",", "")) > 0
    assert re.search(r"<progress max=\"\d+\" value=\"\d+\" aria-label=\"Cache blocks in use\"", engine)
    queued = next(row for row in text.split("<tr>") if job.id in row)
    assert "<bdi>acme</bdi>" in queued
    for words in ["Memory of the process", "host memory", "leases", "Errors of the last hour"]:
        assert words in text, words
    errors = text.split('id="errors-title"')[1]
    failed = [row for row in errors.split("<tr>") if "GET /v1/files/{file_id}" in row and ">401<" in row]
    assert len(failed) == 1 and int(re.search(r'class="number">([\d,]+)<', failed[0])[1].replace(",", "")) >= REFUSED


def test_a_key_is_made_shown_once_and_works(admin, tenants):
    text, key = make(admin, organization=" Page-Made ", name=HOSTILE, requests_per_minute="1,000", tokens_per_minute="", expires="1d")
    assert status(tenants, text) == 200
    page = admin.get(KEYS + "?limit=500").text
    assert text not in page and "<script>alert" not in page
    shown = row(admin, key)
    assert "&lt;script&gt;alert(1)" in shown and "<bdi>page-made</bdi>" in shown
    assert "1,000 requests" in shown and "(default) tokens" in shown and "ends " in shown and "(admin)" not in shown
    with signed_in(tenants.server, text) as client:
        assert client.get("/ui/operations").status_code == 403
    admin_text, admin_key = make(admin, organization="page-made", admin="yes")
    assert "(admin)" in row(admin, admin_key)
    with signed_in(tenants.server, admin_text) as client:
        assert client.get("/ui/operations").status_code == 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"organization": ""},
        {"organization": "a b"},
        {"organization": "a", "requests_per_minute": "0"},
        {"organization": "a", "tokens_per_minute": "many"},
        {"organization": "a", "expires": "soon"},
        {"organization": "a", "expires": "2020-01-01"},
        {"organization": "a", "name": "x" * 201},
    ],
)
def test_a_wrong_form_makes_no_key(admin, fields):
    before = admin.get(KEYS + "?limit=500").text.count("<tr>")
    answer = admin.post(KEYS, data=fields)
    assert answer.status_code == 400, answer.text
    assert "sk-attune-" not in answer.text
    assert admin.get(KEYS + "?limit=500").text.count("<tr>") == before


def test_a_key_is_limited_from_its_next_request_on(admin, tenants):
    text, key = make(admin, organization="page-limited")

    def limit():
        answer = httpx.get(tenants.url + "/v1/models", headers={"Authorization": f"Bearer {text}"})
        return answer.headers["x-ratelimit-limit-requests"]

    assert limit() == "60000"
    answer = admin.post(f"{KEYS}/{key}", data={"action": "limit", "requests_per_minute": "77", "tokens_per_minute": ""})
    assert (answer.status_code, answer.headers["location"]) == (303, KEYS)
    wait_for(lambda: limit() == "77", "the new limit")
    assert "77 requests" in row(admin, key)
    assert admin.post(f"{KEYS}/{key}", data={"action": "limit", "requests_per_minute": "-1"}).status_code == 400
    assert admin.post(f"{KEYS}/{key}", data={"action": "limit"}).status_code == 303
    wait_for(lambda: limit() == "60000", "the limit of the configuration")


def test_a_key_is_revoked_only_if_it_is_meant(admin, tenants):
    text, key = make(admin, organization="page-revoked")
    assert admin.post(f"{KEYS}/{key}", data={"action": "revoke"}).status_code == 400
    assert status(tenants, text) == 200
    assert admin.post(f"{KEYS}/{key}", data={"action": "revoke", "sure": "yes"}).status_code == 303
    wait_for(lambda: status(tenants, text) == 401, "the end of the key")
    shown = row(admin, key)
    assert "revoked" in shown and "<form" not in shown
    assert admin.post(f"{KEYS}/key_nothing", data={"action": "revoke", "sure": "yes"}).status_code == 404
    assert admin.post(f"{KEYS}/{key}", data={"action": "other"}).status_code == 400


def test_a_form_of_another_site_makes_no_key(admin):
    answer = admin.post(KEYS, data={"organization": "a"}, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403 and "sk-attune-" not in answer.text


def test_pages_of_keys_follow_each_other(admin):
    seen, path = [], KEYS + "?limit=2"
    while path:
        page = admin.get(path).text
        seen += re.findall(r'<div class="hint mono">(key_\w+)</div>', page)
        newer = re.search(r'href="(/ui/operations/keys\?limit=2&amp;after=[^"]+)"', page)
        path = newer and newer[1].replace("&amp;", "&")
    assert len(seen) > 3 and len(seen) == len(set(seen))


def test_the_command_limits_a_key_too(binary, tenants):
    _, key = create_key(binary, tenants.server.data_dir, "acme")
    done = keys_command(binary, tenants.server.data_dir, "limit", key, "--rpm", 9)
    assert done.returncode == 0 and "9 requests and default tokens per minute" in done.stdout, done.stderr
    assert keys_command(binary, tenants.server.data_dir, "limit", "key_nothing", "--rpm", 9).returncode == 1


def test_a_server_without_keys_says_what_the_first_one_does(start_server):
    server = start_server()
    with httpx.Client(base_url=server.url, headers={"Accept": "text/html"}) as client:
        page = client.get(KEYS)
        assert page.status_code == 200 and "needs no key now" in page.text
        answer = client.post(KEYS, data={"organization": "operators", "admin": "yes"})
        text = re.search(r'value="(sk-attune-[A-Za-z0-9]+)"', answer.text)[1]
        wait_for(lambda: client.get(KEYS).status_code == 303, "the sign-in")
    with signed_in(server, text) as client:
        assert client.get(KEYS).status_code == 200
