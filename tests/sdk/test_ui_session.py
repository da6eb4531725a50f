"""The page's sessions: signing in and out, what ends a session, forms of other sites, headers of every answer."""

import re
from contextlib import contextmanager

import httpx
import pytest
from conftest import create_key, keys_command, wait_for

SCRIPTS = re.compile(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:", re.IGNORECASE)


def browser(server, **headers):
    """A client that keeps cookies and asks for pages, without following redirects."""
    return httpx.Client(base_url=server.url, timeout=60, headers={"Accept": "text/html", **headers})


def sign_in(client, key, **fields):
    return client.post("/ui/sign-in", data={"key": key, **fields})


@contextmanager
def signed_in(server, key):
    with browser(server) as client:
        assert sign_in(client, key).status_code == 303
        yield client


@pytest.fixture(scope="module")
def own(binary, start_server):
    """A server of this file's own, which needs keys: one of the configuration, and one of the database."""
    server = start_server(settings={"ATTUNE_API_KEYS": '["configured"]'})
    server.text, server.key = create_key(binary, server.data_dir, "acme")
    return server


def test_a_key_is_asked_for_and_leads_to_the_page_that_was_wanted(own):
    with browser(own) as client:
        asked = client.get("/ui/fine-tunes?limit=7")
        assert asked.status_code == 303
        where = asked.headers["location"]
        assert where.startswith("/ui/sign-in?next=")
        form = client.get(where)
        assert form.status_code == 200
        assert 'autocomplete="current-password"' in form.text
        assert 'value="/ui/fine-tunes?limit=7"' in form.text
        answer = sign_in(client, own.text, next="/ui/fine-tunes?limit=7")
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/fine-tunes?limit=7")
        page = client.get("/ui/fine-tunes?limit=7")
        assert page.status_code == 200
        assert "acme" in page.text and "Sign out" in page.text
        assert client.get("/ui").headers["location"] == "/ui/fine-tunes"
        # Whoever is signed in needs no form.
        assert client.get("/ui/sign-in").status_code == 303


def test_the_cookie_is_opaque_and_bound_to_the_page(own):
    with browser(own) as client:
        cookie = sign_in(client, own.text).headers["set-cookie"]
        assert {part.strip().split("=")[0] for part in cookie.split(";")[1:]} == {"Path", "HttpOnly", "SameSite", "Max-Age"}
        assert "Path=/ui;" in cookie and "SameSite=Strict" in cookie
        assert own.text not in cookie
        secure = client.post(
            "/ui/sign-in", data={"key": own.text}, headers={"Origin": "https://attune.example", "Sec-Fetch-Site": "same-origin"}
        ).headers["set-cookie"]
        assert secure.startswith("__Host-") and "; Secure" in secure and "Path=/;" in secure


@pytest.mark.parametrize("key", ["", "nothing", "sk-attune-" + "x" * 40, "configure"])
def test_a_wrong_key_opens_nothing(own, key):
    with browser(own) as client:
        answer = sign_in(client, key)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert client.get("/ui/fine-tunes").status_code == 303
        client.cookies.set("attune-session", "x" * 40, path="/ui")
        assert client.get("/ui/fine-tunes").status_code == 303


def test_a_key_of_the_configuration_signs_in(own):
    with signed_in(own, "configured") as client:
        assert client.get("/ui/fine-tunes").status_code == 200


def test_signing_out_ends_the_session_itself(own):
    with signed_in(own, own.text) as client:
        (token,) = client.cookies.jar
        assert client.post("/ui/sign-out").headers["location"] == "/ui/sign-in"
        assert not list(client.cookies.jar)
        client.cookies.set(token.name, token.value, path="/ui")
        assert client.get("/ui/fine-tunes").status_code == 303


def test_a_revoked_key_ends_its_session(binary, own):
    text, key = create_key(binary, own.data_dir, "acme")
    with signed_in(own, text) as client:
        assert client.get("/ui/fine-tunes").status_code == 200
        assert keys_command(binary, own.data_dir, "revoke", key).returncode == 0
        wait_for(lambda: client.get("/ui/fine-tunes").status_code == 303, "the end of the session")
        # Scripts are told instead of being sent to a form.
        told = client.get("/ui/fine-tunes", headers={"Accept": "application/json"})
        assert told.status_code == 401 and "message" in told.json()["error"]


def test_the_api_knows_nothing_of_sessions(own):
    with signed_in(own, own.text) as client:
        (cookie,) = client.cookies.jar
        answer = httpx.get(own.url + "/v1/models", headers={"Cookie": f"{cookie.name}={cookie.value}"})
        assert answer.status_code == 401
        # Nor does the page know the keys of programs.
        assert httpx.get(own.url + "/ui/fine-tunes", headers={"Authorization": f"Bearer {own.text}"}).status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Origin": "https://example.com"},
        {"Origin": "null"},
    ],
)
def test_forms_of_other_sites_are_refused(own, headers):
    with signed_in(own, own.text) as client:
        for path in ["/ui/sign-in", "/ui/sign-out", "/ui/fine-tunes/ftjob-x/cancel"]:
            answer = client.post(path, data={"key": own.text}, headers=headers)
            assert answer.status_code == 403, path
            assert answer.headers["content-type"].startswith("text/html")
        assert client.get("/ui/fine-tunes").status_code == 200, "the session lives on"


def test_forms_of_the_page_itself_are_taken(own):
    for headers in [{"Sec-Fetch-Site": "same-origin"}, {"Origin": own.url}, {}]:
        with browser(own) as client:
            assert client.post("/ui/sign-in", data={"key": own.text}, headers=headers).status_code == 303, headers


@pytest.mark.parametrize("next", ["https://example.com", "//example.com", "/\\example.com", "/v1/models", "/ui/\\"])
def test_signing_in_leads_nowhere_else(own, next):
    with browser(own) as client:
        assert sign_in(client, own.text, next=next).headers["location"] == "/ui"


def test_every_answer_is_guarded_and_holds_no_script(own):
    with signed_in(own, own.text) as client:
        for path, status in [
            ("/ui/fine-tunes", 200),
            ("/ui/fine-tunes/ftjob-nothing", 404),
            ("/ui/nowhere/at/all", 404),
            ("/ui/fine-tunes/compare", 200),
        ]:
            answer = client.get(path)
            assert answer.status_code == status, path
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "same-origin", "others would make forms look foreign"
            assert not SCRIPTS.search(answer.text), path
            assert answer.text.count("<h1>") == 1
        assert client.delete("/ui/fine-tunes").status_code == 405


def test_files_of_the_page_are_kept_for_ever(own):
    with browser(own) as client:
        page = client.get("/ui/sign-in").text
        paths = re.findall(r'(?:href|src)="(/ui/assets/[^"]+)"', page)
        assert {path.rsplit("/", 1)[1] for path in paths} >= {"page.css", "page.js", "icon.svg"}
        for path in paths:
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "immutable" in answer.headers["cache-control"]
            assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304
        assert client.get(paths[0].rsplit("/", 1)[0] + "/README.md").status_code == 404
    for url in re.findall(r'(?:href|src|action)="([^"]+)"', page):
        assert url.startswith(("/ui", "#")), "nothing comes from elsewhere"


def test_a_server_without_keys_asks_for_none_and_knows_this_machine_only(server):
    with browser(server) as client:
        page = client.get("/ui/fine-tunes")
        assert page.status_code == 200 and "Sign out" not in page.text
        assert client.get("/ui/sign-in").status_code == 303
        assert client.get("/ui/fine-tunes", headers={"Host": "rebound.example.com"}).status_code == 403
        assert client.get("/ui/fine-tunes", headers={"Origin": "https://example.com"}).status_code == 403


def test_the_page_can_be_left_out(start_server):
    server = start_server(settings={"ATTUNE_UI": "false"})
    for path in ["/ui", "/ui/fine-tunes", "/ui/sign-in"]:
        answer = httpx.get(server.url + path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "unknown_url"
