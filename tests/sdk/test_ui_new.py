"""A new fine-tune on the page, by its forms alone, as a browser without JavaScript sends them: a file is checked, a table becomes
training lines, settings are estimated, a job is started. Texts of users stay texts, and nobody sees the files of others."""

import html
import json
import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from conftest import jsonl, upload, wait_for_end
from test_ui_session import SCRIPTS, signed_in

NEW = "/ui/fine-tunes/new"
HOSTILE = "<script>alert(1)</script>\"'&lt; \u202eshalom"
QUICK = {"n_epochs": "1", "batch_size": "4", "learning_rate": "2e-3", "rank": "4", "seed": "7"}


@pytest.fixture(scope="module")
def acme(tenants):
    with signed_in(tenants.server, tenants.keys["acme"]) as client:
        yield client


@pytest.fixture(scope="module")
def rival(tenants):
    with signed_in(tenants.server, tenants.keys["rival"]) as client:
        yield client


@pytest.fixture(scope="module")
def sdk(tenants):
    with tenants.client("acme") as client:
        yield client


@pytest.fixture(autouse=True)
def guarded(acme):
    """Every page of this file is text: no script in it, whatever files, names and fields hold."""

    def look(response):
        if response.headers.get("content-type", "").startswith("text/html"):
            page = response.read().decode()
            assert not SCRIPTS.search(page), response.url
            assert "<script>alert" not in page

    acme.event_hooks = {"response": [look]}


def send(client, content, name="train.jsonl", query=""):
    """Sends the form of the page."""
    content = content if isinstance(content, bytes) else content.encode()
    return client.post(NEW + query, data={"purpose": "fine-tune"}, files={"file": (name, content)})


def follow(client, answer):
    """The page that a form leads to, and its query."""
    assert answer.status_code == 303, answer.text
    where = answer.headers["location"]
    page = client.get(where)
    assert page.status_code == 200, page.text
    return page.text, {name: values[-1] for name, values in parse_qs(urlsplit(where).query).items()}


def taken(client, content, **options):
    """Sends a file that is taken at once; returns the page of its settings and the id of the file."""
    page, query = follow(client, send(client, content, **options))
    return page, query["training_file"]


def part(client, name, **fields):
    answer = client.get(f"{NEW}/settings", params={"part": name, **fields})
    assert answer.status_code == 200 and "<html" not in answer.text
    return answer.text


def words(page):
    """The text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", page))


def test_the_list_leads_to_a_form_that_needs_no_script(acme):
    assert f'href="{NEW}"' in acme.get("/ui/fine-tunes").text
    page = acme.get(NEW).text
    assert 'enctype="multipart/form-data"' in page and 'type="file"' in page and 'type="submit"' in page
    assert '<label for="file">' in page and page.count("<h1>") == 1


def test_a_good_file_is_understood(acme, sdk, tickets):
    page, file = taken(acme, jsonl([*tickets[:12], tickets[0]]), name="tickets.jsonl")
    assert sdk.files.retrieve(file).purpose == "fine-tune"
    text = words(page)
    assert "Formatchats" in text and "Examples13" in text
    assert re.search(r"Tokens[\d,]+, [\d,]+ of them learned", text) and re.search(r"Longest example[\d,]+ tokens", text)
    assert "Duplicates1" in text and "One example repeats an earlier one (line 13)" in text
    learned = re.findall(r'<mark class="learned">([^<]*)</mark>', page)
    answer = tickets[0]["messages"][1]["content"]
    assert any(answer in html.unescape(mark) for mark in learned), learned
    assert not any(tickets[0]["messages"][0]["content"] in html.unescape(mark) for mark in learned)
    assert "<|" in text, "the tokens of the template are shown as the model reads them"


def test_faults_are_shown_with_their_lines_and_nothing_is_kept(acme, sdk, tickets):
    before = [file.id for file in sdk.files.list()]
    lines = jsonl(tickets[:2]).decode().splitlines()
    broken = "\n".join([lines[0], f'{{"prompt": "{HOSTILE}",', lines[1] + ",", lines[1]])
    answer = send(acme, broken, name=HOSTILE.replace("/", "") + ".jsonl")
    assert answer.status_code == 400
    text = words(answer.text)
    assert "faults on 2 lines" in text and "Line 3 ends with a comma: remove the comma at the end." in text
    assert re.search(r"Line 2 \(column \d+\)", text)
    assert html.escape("<script>alert(1)") in answer.text, "the line is shown"
    assert 'type="file"' in answer.text, "the corrected file can be chosen at once"
    assert [file.id for file in sdk.files.list()] == before


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "The file is empty"),
        (b"PK\x03\x04\x14\0\x06\0", "Word or Excel"),
        (b"\xff\xfe{\0", "UTF-16"),
        (b"question,answer\ncaf\xe9,b\n", "not UTF-8 (line 2, byte 4)"),
        (b"[[1, 2]]\n", "array"),
    ],
)
def test_what_is_no_training_file_is_called_by_its_name(acme, content, said):
    answer = send(acme, content, name="x.csv")
    assert answer.status_code == 400 and said in words(answer.text)


def test_faults_that_only_the_model_shows_come_with_their_lines(acme, tickets):
    lonely = {"messages": [{"role": "user", "content": HOSTILE}]}
    page, file = taken(acme, jsonl([*tickets[:12], lonely]))
    text = words(page)
    assert "The training file has faults on one line" in text
    assert "Line 13 has no assistant message: there is nothing to learn." in text
    assert HOSTILE.split("<")[0] in text and html.escape("<script>alert(1)") in page
    estimate = part(acme, "estimate", training_file=file, **QUICK)
    assert "listed above" in words(estimate)


def test_too_few_examples_are_said(acme, tickets):
    page, _ = taken(acme, jsonl(tickets[:3]))
    assert "must have at least 10 examples" in words(page)


def test_the_estimate_changes_with_the_settings_and_creates_nothing(acme, sdk, tickets):
    _, file = taken(acme, jsonl(tickets[:12]))
    jobs = [job.id for job in sdk.fine_tuning.jobs.list()]
    one = words(part(acme, "estimate", training_file=file, model="demo", method="supervised", **QUICK))
    three = words(part(acme, "estimate", training_file=file, model="demo", method="supervised", **{**QUICK, "n_epochs": "3"}))
    assert "1 epochs, 3 steps of 4 examples" in one and "3 epochs, 9 steps of 4 examples" in three
    for said in ["Time", "Memory at the peak", "USD for tokens", "rank 4"]:
        assert said in one, said
    cost = [float(re.search(r"([\d.]+) USD for tokens", text)[1]) for text in (one, three)]
    assert 0 < cost[0] < cost[1]
    whole = acme.get(f"{NEW}/settings", params={"training_file": file, "estimate": "yes", **QUICK}).text
    assert "3 steps of 4 examples" in words(whole) and 'name="n_epochs" value="1"' in whole
    assert [job.id for job in sdk.fine_tuning.jobs.list()] == jobs


@pytest.mark.parametrize(
    "field, value, said", [("n_epochs", "99", "between 1 and 50"), ("rank", "wide", "number"), ("keep_best", "yes", "validation_file")]
)
def test_a_setting_that_is_refused_is_named(acme, tickets, field, value, said):
    _, file = taken(acme, jsonl(tickets[:12]))
    estimate = part(acme, "estimate", training_file=file, **{**QUICK, field: value})
    assert said in words(estimate) and re.search(rf'data-param="[^"]*{field}"', estimate)
    answer = acme.post(f"{NEW}/start", data={"training_file": file, **QUICK, field: value})
    assert answer.status_code == 400 and said in words(answer.text)
    assert re.search(rf'id="{field}"[^>]*aria-invalid="true"', answer.text)


def test_a_job_is_started_and_shown(acme, sdk, tickets):
    _, file = taken(acme, jsonl(tickets[:12]), name="tickets.jsonl")
    fields = {"training_file": file, "model": "demo", "method": "supervised", "suffix": "from the page", **QUICK}
    answer = acme.post(f"{NEW}/start", data={**fields, "alpha": "", "validation_file": ""})
    assert answer.status_code == 303, answer.text
    where = answer.headers["location"]
    assert re.fullmatch(r"/ui/fine-tunes/ftjob-\w+", where)
    assert acme.get(where).status_code == 200
    job = wait_for_end(sdk, where.rsplit("/", 1)[1])
    assert (job.status, job.seed, job.training_file) == ("succeeded", 7, file)
    used = job.method.supervised.hyperparameters
    assert (used.n_epochs, used.batch_size) == (1, 4)
    assert "from-the-page" in job.fine_tuned_model


def test_a_validation_file_is_added_to_what_was_chosen(acme, tickets):
    _, file = taken(acme, jsonl(tickets[:12]))
    page, query = follow(acme, send(acme, jsonl(tickets[10:16]), name="held-out.jsonl", query=f"?training_file={file}&rank=4"))
    assert (query["training_file"], query["rank"]) == (file, "4")
    text = words(page)
    assert "Validation file" in text and "Examples6" in text
    assert "2 validation examples are in the training file, too (lines 1 and 2)" in text
    assert f'value="{query["validation_file"]}" selected' in page
    broken = jsonl([*tickets[:2], {"messages": []}])
    page, _ = follow(acme, send(acme, broken, query=f"?training_file={file}"))
    assert "The validation file has faults on one line" in words(page) and "Line 3 has no messages" in words(page)


TABLES = {
    "comma": (",", "\n", ""),
    "semicolon and windows": (";", "\r\n", "\ufeff"),
    "tab": ("\t", "\n", ""),
    "announced": (";", "\r\n", "\ufeffsep=;\r\n"),
}


def table(tickets, separator=",", end="\n", begin=""):
    """Tickets as a spreadsheet saves them, with cells that try everything."""
    cell = lambda text: '"' + text.replace('"', '""') + '"'  # noqa: E731
    rows = [["id", "Question", "Answer"]]
    for number, ticket in enumerate(tickets):
        question, answer = (message["content"] for message in ticket["messages"])
        rows.append([str(number), f"{question}, {separator} \"so\"{end}{HOSTILE}", answer])
    return begin + "".join(separator.join(map(cell, row)) + end for row in rows)


@pytest.mark.parametrize("kind", TABLES)
def test_a_table_becomes_training_lines(acme, sdk, tickets, kind):
    separator, end, begin = TABLES[kind]
    page, query = follow(acme, send(acme, table(tickets[:12], separator, end, begin), name=HOSTILE.replace("/", "") + ".csv"))
    assert "Which column is which?" in page and "Question" in page
    raw = query["file"]
    # The columns are guessed by their names.
    form = page.split('name="format" value="chat"')[1].split("</form>")[0]
    assert re.findall(r'value="(\d)" selected', form) == ["1", "2"]
    chosen = {"file": raw, "format": "chat", "user": "1", "assistant": "2", "system_text": "Be brief."}
    page, query = follow(acme, acme.post(f"{NEW}/columns", data=chosen))
    assert "Examples12" in words(page)
    file = query["training_file"]
    lines = [json.loads(line) for line in sdk.files.content(file).text.splitlines()]
    assert len(lines) == 12
    question, answer = (message["content"] for message in tickets[3]["messages"])
    assert lines[3] == {"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": f"{question}, {separator} \"so\"{end}{HOSTILE}"},
        {"role": "assistant", "content": answer},
    ]}  # fmt: skip
    # Forms write a quotation mark in a name so, and the API keeps names as they come.
    assert sdk.files.retrieve(file).filename == HOSTILE.replace("/", "").replace('"', "%22") + ".jsonl"
    assert acme.get(f"{NEW}/columns", params={"file": raw}).status_code == 404, "the table is gone"


def test_rows_at_fault_are_named_by_their_lines(acme, sdk, tickets):
    content = table(tickets[:12]) + '"12","what?",""\n"13","a","b","c"\n'
    _, query = follow(acme, send(acme, content, name="t.csv"))
    chosen = {"file": query["file"], "format": "chat", "user": "1", "assistant": "2"}
    answer = acme.post(f"{NEW}/columns", data=chosen)
    text = words(answer.text)
    # Each question has a line break of its own.
    assert answer.status_code == 400 and "Line 26 has nothing in the column `Answer`" in text
    assert "Line 27 has 4 cells, but there are 3 columns" in text
    _, query = follow(acme, send(acme, table(tickets[:12]) + '"12","what?",""\n,,\n', name="t.csv"))
    page, query = follow(acme, acme.post(f"{NEW}/columns", data={**chosen, "file": query["file"], "skip": "yes"}))
    assert "2 rows were left out" in words(page) and "Examples12" in words(page)


def test_a_table_with_an_open_quotation_mark_swallows_no_rows(acme, tickets):
    content = table(tickets[:12]) + '"12","what?","never closed\n' + "13,a,b\n" * 40
    _, query = follow(acme, send(acme, content, name="t.csv"))
    answer = acme.post(f"{NEW}/columns", data={"file": query["file"], "format": "chat", "user": "1", "assistant": "2"})
    assert answer.status_code == 400 and "Line 26 begins a row with a quotation mark" in words(answer.text)


def test_columns_must_be_chosen_and_one_is_one_thing(acme, tickets):
    _, query = follow(acme, send(acme, table(tickets[:12]), name="t.csv"))
    for chosen, said in [
        ({"user": "1", "assistant": ""}, "Choose the column"),
        ({"user": "1", "assistant": "1"}, "One column stands for two things"),
        ({"user": "1", "assistant": "99"}, "Choose the column"),
    ]:
        answer = acme.post(f"{NEW}/columns", data={"file": query["file"], "format": "chat", **chosen})
        assert answer.status_code == 400 and said in words(answer.text), chosen
    assert acme.post(f"{NEW}/columns", data={"file": query["file"], "format": "nothing"}).status_code == 400
    # Read without names and with another separator.
    page = acme.get(f"{NEW}/columns", params={"file": query["file"], "separator": "tab", "header": "no"}).text
    assert "Column 1" in page
    assert acme.post(f"{NEW}/discard", data={"file": query["file"]}).headers["location"] == NEW
    assert acme.get(f"{NEW}/columns", params={"file": query["file"]}).status_code == 404


def test_an_array_becomes_lines_as_it_is_or_by_its_keys(acme, sdk, tickets):
    content = json.dumps(tickets[:12], indent=2, ensure_ascii=False)
    page, query = follow(acme, send(acme, content, name="t.json"))
    assert "a JSON array" in words(page)
    _, query = follow(acme, acme.post(f"{NEW}/columns", data={"file": query["file"], "format": "objects"}))
    lines = [json.loads(line) for line in sdk.files.content(query["training_file"]).text.splitlines()]
    assert lines == tickets[:12]
    flat = [{"n": n, "in": f"{HOSTILE} {n}", "out": f"{n}"} for n in range(12)]
    page, query = follow(acme, send(acme, json.dumps(flat), name="t.json"))
    chosen = {"file": query["file"], "format": "completion", "prompt": "1", "completion": "2"}
    page, query = follow(acme, acme.post(f"{NEW}/columns", data=chosen))
    lines = [json.loads(line) for line in sdk.files.content(query["training_file"]).text.splitlines()]
    assert lines[5] == {"prompt": f"{HOSTILE} 5", "completion": "5"}
    assert "prompts and completions" in page


def test_preferences_are_recognised(acme):
    lines = [{"prompt": f"{n} and", "chosen": " more", "rejected": " no more of it"} for n in range(12)]
    page, file = taken(acme, jsonl(lines))
    assert '<option value="dpo" selected' in page
    text = words(page)
    assert "the better answer" in text and "the worse answer" in text and "Examples12" in text
    estimate = words(part(acme, "estimate", training_file=file, n_epochs="1", batch_size="4", beta="0.2"))
    assert "3 steps of 4 examples" in estimate


def test_a_page_of_a_large_file_comes_before_it_is_read(acme, tickets):
    lines = jsonl(tickets[:100])
    many = lines * ((2 << 20) // len(lines) + 1)
    page, file = taken(acme, many)
    assert 'id="understood" data-part data-missing' in page and "Read the file" in page
    understood = words(part(acme, "understood", training_file=file, model="demo", method="supervised"))
    examples = many.count(b"\n")
    assert f"Examples{examples:,}" in understood


def test_others_see_none_of_it(acme, rival, tickets):
    _, file = taken(acme, jsonl(tickets[:12]))
    _, query = follow(acme, send(acme, table(tickets[:12]), name="t.csv"))
    raw = query["file"]
    for path, params in [
        ("/settings", {"training_file": file}),
        ("/settings", {"training_file": file, "part": "estimate"}),
        ("/settings", {"training_file": file, "part": "understood"}),
        ("/columns", {"file": raw}),
    ]:
        assert rival.get(NEW + path, params=params).status_code == 404, (path, params)
    for path, data in [
        ("/start", {"training_file": file, "model": "demo", **QUICK}),
        ("/columns", {"file": raw, "format": "chat", "user": "1", "assistant": "2"}),
        ("/discard", {"file": raw}),
    ]:
        assert rival.post(NEW + path, data=data).status_code == 404, path
    own = taken(rival, jsonl(tickets[:12]))[1]
    measured = words(part(rival, "understood", training_file=own, validation_file=file))
    assert "does not exist" in measured
    assert file not in rival.get(f"{NEW}/settings", params={"training_file": own}).text


def test_forms_of_other_sites_and_of_nobody_are_refused(acme, tenants, tickets):
    files = {"file": ("t.jsonl", jsonl(tickets[:12]))}
    for path in ["", "/columns", "/discard", "/start"]:
        assert acme.post(NEW + path, files=files, headers={"Origin": "https://example.com"}).status_code == 403, path
    with httpx.Client(base_url=tenants.url, headers={"Accept": "text/html"}) as nobody:
        assert nobody.get(NEW).status_code == 303
        assert nobody.post(NEW, files=files).headers["location"] == "/ui/sign-in"


def test_only_files_of_examples_have_settings(acme, sdk, tickets):
    other = sdk.files.create(file=("x.bin", b"anything"), purpose="vision").id
    assert acme.get(f"{NEW}/settings", params={"training_file": other}).status_code == 400
    assert acme.get(f"{NEW}/columns", params={"file": upload(sdk, tickets[:12])}).status_code == 400
    assert acme.get(f"{NEW}/settings").headers["location"].startswith(NEW)
    assert acme.get(f"{NEW}/settings", params={"training_file": HOSTILE}).status_code == 404
