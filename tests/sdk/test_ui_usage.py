"""Usage and cost on the page: the API's own sums, and a calculator that agrees with `attune costs`."""

import html
import re
import subprocess

import attunelib
import httpx
import pytest
from conftest import create_key, sdk
from test_ui_session import SCRIPTS, signed_in

HOSTILE = "<script>alert(1)</script>\"'&lt; x"
PLAN = {
    "requests_per_day": "10000", "prompt_tokens": "400", "completion_tokens": "100", "price_per_hour": "0.2",
    "hours_per_day": "24", "tokens_per_second": "60", "training_tokens_per_month": "3000000",
}  # fmt: skip
HOSTED = {"model": "hosted", "prompt": "1", "completion": "4", "training": "3", "seen": "2026-11-01", "source": "a list"}


@pytest.fixture(scope="module")
def spender(binary, tenants):
    """A new organisation that has asked three times; the sums that the API has for it."""
    text, key = create_key(binary, tenants.server.data_dir, "page-spender", "--name", HOSTILE)
    with sdk(tenants.server, text) as client:
        for _ in range(3):
            client.completions.create(model="demo", prompt="Hello there", max_tokens=5)
    with signed_in(tenants.server, text) as page:
        page.key = key
        report = tenants.http("admin").get("/v1/usage", params={"organization": "page-spender", "group_by": ""}).json()
        (page.sums,) = report["data"]
        assert page.sums["requests"] == 3
        yield page


@pytest.fixture(scope="module")
def admin(tenants):
    with signed_in(tenants.server, tenants.keys["admin"]) as client:
        yield client


def facts(page):
    """The terms and values of the page's first list."""
    pairs = re.findall(r"<dt>(.*?)</dt>\s*<dd[^>]*>(.*?)</dd>", page, re.DOTALL)
    return {name: re.sub(r"<[^>]+>", "", value).strip() for name, value in pairs}


def test_sums_are_those_of_the_api(spender):
    answer = spender.get("/ui/usage")
    assert answer.status_code == 200 and not SCRIPTS.search(answer.text)
    shown = facts(answer.text)
    assert shown["Requests"] == "3"
    assert shown["Tokens of prompts"].split(",")[0] == str(spender.sums["prompt_tokens"])
    assert shown["Tokens of answers"] == str(spender.sums["completion_tokens"])
    assert shown["Cost by the token"].endswith(" USD")
    for words in ["By day", "By model", "By key", "As a table", "<rect", "<bdi>demo</bdi>"]:
        assert words in answer.text, words
    assert answer.text.count("<h1>") == 1


def test_names_of_keys_are_shown_and_stay_texts(spender):
    page = spender.get("/ui/usage").text
    keys = page.split('id="keys"')[1]
    assert spender.key in keys
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in keys


def test_days_can_be_chosen_and_wrong_ones_are_named(spender):
    before = spender.get("/ui/usage?start_date=2020-01-01&end_date=2020-01-31")
    assert "Nothing was used in these days" in before.text
    assert 'value="2020-01-31"' in before.text
    wrong = spender.get("/ui/usage?start_date=tomorrow")
    assert wrong.status_code == 400 and wrong.headers["content-type"].startswith("text/html")
    assert "<script>" not in spender.get("/ui/usage?start_date=%3Cscript%3E").text


def test_only_admins_see_what_others_used(spender, admin):
    own = admin.get("/ui/usage").text
    assert "page-spender" not in own
    every = admin.get("/ui/usage?organization=*").text
    assert "<bdi>page-spender</bdi>" in every and "Organisation" in every
    assert spender.get("/ui/usage?organization=*").status_code == 403
    assert spender.get("/ui/usage?organization=operators").status_code == 403
    assert 'name="organization"' not in spender.get("/ui/usage").text


def test_the_calculator_says_what_the_command_says(binary, spender, tmp_path):
    settings = tmp_path / "attune.toml"
    settings.write_text(
        "[training]\nprice_per_hour = 0.2\n[prices.hosted]\nprompt = 1.0\ncompletion = 4.0\ntraining = 3.0\n"
    )
    arguments = ["--requests-per-day", "10000", "--prompt-tokens", "400", "--completion-tokens", "100",
                 "--training-tokens", "3000000", "--tokens-per-second", "60"]  # fmt: skip
    done = subprocess.run(
        [str(binary), "costs", "--config", str(settings), *arguments],
        capture_output=True, text=True, timeout=30, env=attunelib.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(None, 1) if not line.startswith(("by the", "own")) else (line[:12].strip(), line[12:].strip())
                 for line in done.stdout.splitlines())  # fmt: skip
    page = spender.get("/ui/usage/costs", params={**PLAN, **HOSTED})
    assert page.status_code == 200 and not SCRIPTS.search(page.text)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", page.text))
    assert lines["break-even"].split()[0] + " requests a day" in text
    assert "Own machine: " + lines["own machine"].split(" a day")[0] + " a day" in text
    assert lines["by the token"].split(" a day")[0] in text
    assert lines["capacity"].split()[0] + " requests a day" in text
    assert re.search(r"own machine, by ([\d.]+ USD) a month", text)[1] in lines["cheaper"]
    # The lines over requests a day, and their table.
    assert page.text.count("<polyline") == 2 and 'data-mark="5625"' in page.text and 'id="points"' in page.text


def test_the_form_is_filled_from_what_was_used(spender):
    page = spender.get("/ui/usage/costs").text
    assert "Filled from the 3 requests of your organisation" in page
    assert 'name="requests_per_day" value="3"' in page
    mean = round(spender.sums["prompt_tokens"] / 3)
    assert f'name="prompt_tokens" value="{mean}"' in page
    # No price of the machine is configured, so nothing is compared yet.
    assert 'id="price_per_hour-fault"' in page and 'aria-invalid="true"' in page
    rows = re.findall(r'<input name="model" value="([^"]*)"', page)
    assert rows[0] == "demo" and rows[-1] == "" and len(rows) > 3
    days = re.findall(r'<input name="seen" value="([^"]*)"', page)
    sources = re.findall(r'<input name="source" value="([^"]*)"', page)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", day) for day in days[1:-1]) and all(sources[:-1])


def test_what_people_type_stays_text_and_wrong_numbers_are_named(spender):
    page = spender.get("/ui/usage/costs", params={**PLAN, **HOSTED, "model": HOSTILE, "source": HOSTILE}).text
    assert "<script>alert" not in page and html.escape("<script>alert(1)") in page
    wrong = spender.get("/ui/usage/costs", params={**PLAN, **HOSTED, "hours_per_day": "25", "prompt_tokens": "<b>"}).text
    assert 'id="hours_per_day-fault"' in wrong and 'id="prompt_tokens-fault"' in wrong and "<b>" not in wrong
    assert "nothing is compared" in wrong
    price = spender.get("/ui/usage/costs", params={**PLAN, **HOSTED, "prompt": "x"}).text
    assert "the price of prompts is no number" in price
    many = [("model", f"m{number}") for number in range(21)]
    assert spender.get("/ui/usage/costs", params=many).status_code == 400


def test_without_a_session_nothing_is_shown(tenants):
    for path in ["/ui/usage", "/ui/usage/costs"]:
        assert httpx.get(tenants.url + path, headers={"Accept": "text/html"}).status_code == 303
