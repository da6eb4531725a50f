"""A distillation on the page, by its forms alone, as a browser without JavaScript sends them: prompts are uploaded or chosen, the cost
is told, a teacher is asked, and the job's page tells what came of it."""

import html
import json
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import jsonl, sdk, upload, wait_for, wait_for_end
from teacherlib import Teacher
from test_ui_session import SCRIPTS, browser

pytestmark = pytest.mark.timeout(400)
NEW = "/ui/fine-tunes/new"
FORM = f"{NEW}/distillation"
HOSTILE = "<script>alert(1)</script>\"'&lt; \u202eshalom"
QUICK = {"n_epochs": "1", "batch_size": "8", "learning_rate": "1e-4", "rank": "4", "seed": "7"}


def rule(text):
    if "Judge" in text or "Is this a right and complete answer" in text:
        return '{"steps": [], "result": "good"}'
    return f"The number is {text.split()[-1]}"


@pytest.fixture(scope="module")
def school(start_server):
    teacher = Teacher(rule)
    server = start_server(settings=teacher.settings())
    yield teacher, server
    server.stop()
    teacher.close()


@pytest.fixture
def teacher(school):
    return school[0]


@pytest.fixture(scope="module")
def page(school):
    """A browser; every page that it sees is text: no script in it, whatever files, names and fields hold."""

    def look(response):
        if response.headers.get("content-type", "").startswith("text/html"):
            text = response.read().decode()
            assert not SCRIPTS.search(text), response.url
            assert "<script>alert" not in text

    with browser(school[1]) as client:
        client.event_hooks = {"response": [look]}
        yield client


@pytest.fixture(scope="module")
def client(school):
    with sdk(school[1]) as client:
        yield client


def prompts(count, begin="Say the number"):
    return [{"prompt": f"{begin} {number}."} for number in range(count)]


def words(text):
    """The text of a page without its tags."""
    return html.unescape(re.sub(r"<[^>]+>", "", text))


def send(page, content, name):
    """Sends the form for a file of prompts; returns the page that it leads to, and its query."""
    content = content if isinstance(content, bytes) else content.encode()
    answer = page.post(f"{NEW}?method=distillation&teacher=teacher%3Abig", data={"purpose": "fine-tune"},
                       files={"file": (name, content)})  # fmt: skip
    if answer.status_code != 303:
        return answer, {}
    where = answer.headers["location"]
    return page.get(where), {name: values[-1] for name, values in parse_qs(urlsplit(where).query).items()}


def fields(file, **more):
    return {"method": "distillation", "from": "file", "prompts": file, "teacher": "teacher:big", "max_teacher_cost": "5",
            "model": "demo", **QUICK, **more}  # fmt: skip


def estimate(page, **chosen):
    answer = page.get(FORM, params={**chosen, "part": "estimate"})
    assert answer.status_code == 200 and "<html" not in answer.text
    return answer.text


def start(page, **chosen):
    return page.post(f"{FORM}/start", data=chosen)


def started(page, client, **chosen):
    """A job from its start to its end, with the text of its page."""
    answer = start(page, **chosen)
    assert answer.status_code == 303, words(answer.text)
    where = answer.headers["location"]
    assert re.fullmatch(r"/ui/fine-tunes/ftjob-\w+", where)
    job = wait_for_end(client, where.rsplit("/", 1)[1])
    return job, words(page.get(where).text)


def test_the_first_step_of_a_fine_tune_leads_to_a_form_that_needs_no_script(page):
    assert f'href="{FORM}"' in page.get(NEW).text
    shown = page.get(FORM).text
    assert shown.count("<h1>") == 1 and 'type="file"' in shown and f'formaction="{FORM}/start"' in shown
    for field in ("prompts", "teacher", "max_teacher_cost", "model", "filter", "graders", "samples"):
        assert f'name="{field}"' in shown and f'<label for="{field}">' in shown, field
    text = words(shown)
    assert "big (150 USD per million tokens read, 600 written)" in text and "Budget in USD" in text
    assert '<option value="demo" selected>' in shown, "a model that can learn is chosen"


def test_prompts_come_as_lines_as_a_text_and_as_a_table(page, client):
    for name, content in [
        ("p.jsonl", jsonl(prompts(12))),
        ("p.txt", "\ufeff" + "\r\n\r\n".join(f"Say the number {number}." for number in range(12))),
        ("p.txt", jsonl(prompts(12))),
    ]:
        shown, query = send(page, content, name)
        assert shown.status_code == 200 and query["teacher"] == "teacher:big", name
        assert f'<option value="{query["prompts"]}" selected>' in shown.text
        lines = [json.loads(line) for line in client.files.content(query["prompts"]).text.splitlines()]
        assert lines == prompts(12), name
    # A table with one column, and one with the right answers.
    for head, row, answer in [("question", '"Say, {0}"', None), ("question,label", '"Say, {0}",{0}', "{0}")]:
        table = head + "\n" + "".join(row.format(number) + "\n" for number in range(12))
        shown, query = send(page, table, "p.csv")
        assert "Which column is which?" in shown.text and "Prompts for a teacher" in shown.text
        assert "Questions and answers of a chat" not in shown.text
        chosen = {"file": query["file"], "method": "distillation", "teacher": "teacher:big", "format": "prompts", "prompt": "0"}
        answer_column = {"answer": "1"} if answer else {}
        done = page.post(f"{NEW}/columns", data=chosen | answer_column)
        assert done.status_code == 303, words(done.text)
        query = {name: values[-1] for name, values in parse_qs(urlsplit(done.headers["location"]).query).items()}
        assert query["teacher"] == "teacher:big"
        lines = [json.loads(line) for line in client.files.content(query["prompts"]).text.splitlines()]
        expected = {"prompt": "Say, 3"} | ({"answer": "3"} if answer else {})
        assert lines[3] == expected and len(lines) == 12


def test_what_is_no_file_of_prompts_is_called_by_its_name_and_not_kept(page, client):
    before = [file.id for file in client.files.list()]
    for name, content, said in [
        ("x.txt", b"caf\xe9\n", "Line 1 is not UTF-8"),
        ("x.txt", b"\n \n", "no line with a prompt"),
        ("x.jsonl", f'{{"prompt": "{HOSTILE}",\n', "line"),
    ]:
        answer, _ = send(page, content, name)
        assert answer.status_code == 400 and said in words(answer.text), name
        assert "A file of prompts" in answer.text and "method=distillation" in answer.text
    assert [file.id for file in client.files.list()] == before


def test_the_cost_is_told_before_and_nothing_is_asked(page, client, teacher):
    file = upload(client, [*prompts(40), prompts(1)[0]])
    asked, jobs = teacher.micros, [job.id for job in client.fine_tuning.jobs.list()]
    text = words(estimate(page, **fields(file, max_teacher_cost="0.001", samples="2")))
    assert "Prompts40; 1 more stand there again" in text and "Questions to the teacher80" in text
    assert "Budget0.001 USD" in text and "the budget ends before the prompts do" in text
    assert re.search(r"Cost at the most[\d.]+ USD", text)
    assert "ends before" not in words(estimate(page, **fields(file, max_teacher_cost="1000")))
    whole = page.get(FORM, params={**fields(file), "estimate": "yes"}).text
    assert "Questions to the teacher" in words(whole) and 'name="max_teacher_cost" value="5"' in whole
    assert (teacher.micros, [job.id for job in client.fine_tuning.jobs.list()]) == (asked, jobs)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("max_teacher_cost", "", "has a price"),
        ("max_teacher_cost", "-1", "at least 0"),
        ("teacher", "teacher:nobody", "There is no teacher `nobody`"),
        ("teacher", "", "teacher"),
        ("prompts", "", "prompts"),
        ("samples", "17", "between 1 and 16"),
        ("filter", "contains", "Write the text"),
        ("filter", "judge", "Choose the model"),
        ("rank", "wide", "number"),
    ],
)
def test_a_field_that_is_refused_is_named(page, client, field, value, said):
    file = upload(client, prompts(12))
    chosen = fields(file) | {field: value}
    shown = estimate(page, **chosen)
    # A script asks while the form is still filled in.
    assert (said in words(shown) and "data-param" in shown) or field == "prompts"
    answer = start(page, **chosen)
    assert answer.status_code == 400 and said in words(answer.text)
    blamed = {"filter": "filter_text" if value == "contains" else "judge"}.get(field, field)
    assert re.search(rf'id="{blamed}"[^>]*aria-invalid="true"', answer.text)


def test_a_job_is_started_and_its_page_tells_what_it_cost(page, client, teacher):
    file = upload(client, prompts(20))
    before = teacher.micros
    job, text = started(page, client, **fields(file, suffix="from the page"))
    assert job.status == "succeeded", job.error
    cost = (teacher.micros - before) / 1e6
    settings = job.method.distillation
    assert (settings["prompts"], settings["teacher"], settings["max_teacher_cost"]) == (file, "teacher:big", 5)
    assert "from-the-page" in job.fine_tuned_model and job.seed == 7
    assert "Answers of the teacher" in text and "20 of 20, 20 fit to learn from" in text
    spent = re.search(r"Spent([\d.]+) of 5.00 USD", text)
    assert spent and float(spent[1]) == pytest.approx(cost)
    report = page.get(f"/ui/fine-tunes/{job.id}/report")
    assert report.json()["kept"] == 20 and report.json()["cost"] == pytest.approx(cost)
    figures = page.get(f"/ui/fine-tunes/{job.id}/result")
    assert figures.text.startswith("step,"), "the figures of the steps are another file than the report"


def test_ready_made_choices_keep_what_is_right(page, client):
    lines = [{"prompt": f"Say the number {number}.", "answer": f"the NUMBER is {number if number % 2 else 0}."} for number in range(24)]
    file = upload(client, lines)
    job, text = started(page, client, **fields(file, filter="same"))
    assert job.status == "succeeded", job.error
    assert "24 of 24, 13 fit to learn from" in text and "right answer (at least 1 from each)" in text
    job, text = started(page, client, **fields(file, filter="contains", filter_text="number is 1"))
    assert job.status == "succeeded" and "24 of 24, 11 fit to learn from" in text
    own = [{"type": "string_check", "name": HOSTILE, "operation": "ne", "input": "{{sample.output_text}}", "reference": "The number is 3."}]
    job, text = started(page, client, **fields(file, filter="json", graders=json.dumps(own)))
    assert job.status == "succeeded" and "24 of 24, 23 fit to learn from" in text and HOSTILE in text


def test_a_model_judges_lines_of_either_kind_but_not_of_both(page, client):
    chats = [{"messages": [{"role": "user", "content": f"Say the number {number}."}]} for number in range(12)]
    for lines, place in [(prompts(12), "{{item.prompt}}"), (chats, "{{item.messages}}")]:
        chosen = fields(upload(client, lines), filter="judge", judge="teacher:big", judge_rule="Be kind.")
        answer = start(page, **chosen)
        assert answer.status_code == 303, words(answer.text)
        job = client.fine_tuning.jobs.retrieve(answer.headers["location"].rsplit("/", 1)[1])
        (grader,) = job.method.distillation["graders"]
        asked = grader["input"][0]["content"]
        assert place in asked and "Be kind." in asked and grader["type"] == "label_model"
        client.fine_tuning.jobs.cancel(job.id)
    mixed = upload(client, [*prompts(6), *chats])
    shown = words(estimate(page, **fields(mixed, filter="judge", judge="teacher:big")))
    assert "Some lines of the file have a prompt and others messages" in shown


def test_stored_chats_are_asked_anew_or_learned_as_they_are(page, client):
    for number in range(12):
        client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": f"Say {number}."}], store=True, max_tokens=3,
            metadata={"app": "desk" if number else "shop"},
        )  # fmt: skip
    chosen = {"method": "distillation", "from": "stored", "note": "app", "note_value": "desk", "model": "demo", **QUICK}
    text = words(estimate(page, **chosen, teacher="teacher:big", max_teacher_cost="1", created_after="2020-01-01"))
    assert "Prompts11" in text and "Questions to the teacher11" in text
    text = words(estimate(page, **chosen))
    assert "none: the stored answers are judged" in text
    assert "There is no prompt" in words(estimate(page, **chosen, created_before="2020-01-01"))
    job, text = started(page, client, **chosen, teacher="teacher:big", max_teacher_cost="1")
    assert job.status == "succeeded", job.error
    assert "11 of 11, 11 fit to learn from" in text and "with the note app: desk" in text


def test_a_job_that_collects_can_be_cancelled_and_shows_that_its_file_is_to_come(page, client, school):
    teacher, _ = school
    teacher.seconds = 1.0
    try:
        answer = start(page, **fields(upload(client, prompts(60))))
        where = answer.headers["location"]
        shown = wait_for(lambda: (text := words(page.get(where).text)) and "running" in text and text, "the beginning")
        assert "is made of the answers" in shown and "Answers of the teacher" in shown
        assert page.get(f"{where}/report").status_code == 404
        assert page.post(f"{where}/cancel").status_code == 303
        job = wait_for_end(client, where.rsplit("/", 1)[1])
        assert job.status == "cancelled"
    finally:
        teacher.seconds = 0.0
