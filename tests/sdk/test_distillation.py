"""Distillation: jobs that train on the answers of a teacher, which here is a stand-in that fails as real ones do."""

import json
import time

import attunelib
import httpx
import openai
import pytest
import real_models
from conftest import ask_database, events, jsonl, sdk, upload, wait_for, wait_for_end
from teacherlib import KEY, Teacher

pytestmark = pytest.mark.timeout(400)
# Few steps: what is trained is not looked at.
SHORT = {"n_epochs": 1, "batch_size": 8, "rank": 4, "learning_rate": 1e-4}


def prompts(count):
    return [{"prompt": f"Say the number {number}."} for number in range(count)]


def rule(text):
    return f"The number is {text.split()[-1]}"


@pytest.fixture
def teach(start_server):
    """A function that starts a stand-in and a server that knows it as `teacher:big`."""
    made = []

    def start(rule=rule, faults=lambda text, number: None, seconds=0.0, **settings):
        teacher = Teacher(rule, faults, seconds)
        server = start_server(settings={**teacher.settings(**settings)})
        made.append((teacher, server))
        return teacher, server

    yield start
    for teacher, server in made:
        server.stop()
        teacher.close()


def distil(client, file, budget=10.0, model="demo", hyperparameters=None, **settings):
    """Starts a job."""
    distillation = {
        "teacher": "teacher:big",
        "max_teacher_cost": budget,
        "hyperparameters": hyperparameters or SHORT,
        **settings,
    }
    return client.fine_tuning.jobs.create(
        model=model, training_file=file, seed=7, method={"type": "distillation", "distillation": distillation}
    )


def report_of(client, job):
    """What the job's report says."""
    file = job.method.distillation["report_file"]
    assert file in job.result_files
    return client.files.content(file).json()


def lines_of(client, job):
    """The lines that the job trained on."""
    return [json.loads(line) for line in client.files.content(job.training_file).text.splitlines()]


def micros(money):
    return round(money * 1e6)


def test_every_prompt_is_paid_once_and_what_is_not_fit_is_left_out(teach):
    """Busy, failing and broken answers are asked for again; refusals, cut and empty answers are not trained on."""

    def answers(text):
        number = int(text.split()[-1].strip("."))
        special = {5: "I'm sorry, but I can't help with that.", 6: "word " * 80, 7: " ", 8: ("It is", "content_filter")}
        return special.get(number, rule(text))

    def faults(text, number):
        which = int(text.split()[-1].strip(".")) % 10
        return {1: 429, 2: 500, 3: "cut"}.get(which) if number == 1 else None

    teacher, server = teach(answers, faults)
    with sdk(server) as client:
        lines = [*prompts(40), {"prompt": "say the  number 39."}]
        job = distil(client, upload(client, lines))
        assert job.method.type == "distillation"
        assert job.training_file.startswith("file-")
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded", job.error
        report, trained = report_of(client, job), lines_of(client, job)
        told = [event.message for event in events(client, job.id)]
    wanted = [number for number in range(40) if number not in (5, 6, 7, 8)]
    assert [line["messages"][0]["content"] for line in trained] == [f"Say the number {number}." for number in wanted]
    assert [line["messages"][1]["content"] for line in trained] == [f"The number is {number}." for number in wanted]
    assert report["left_out"] == {"cut": 1, "empty": 1, "refusal": 2}
    assert (report["prompts"], report["duplicate_prompts"], report["kept"]) == (40, 1, 36)
    assert report["ended_by"] == "prompts"
    assert set(teacher.paid.values()) == {1} and len(teacher.paid) == 40
    assert teacher.most_flying <= 8
    # A broken answer counts as the most that it may have cost: nobody can know.
    assert teacher.micros <= micros(report["cost"]) <= 10_000_000
    assert any(message.startswith("Collected 40 of 40, kept 36, ") for message in told), told
    assert any("Left out: 1 cut off by their length, 1 empty, 2 refusals." in message for message in told), told
    assert all(body["model"] == "big-model" and body["max_tokens"] == 64 for body in teacher.bodies)


def test_the_bill_is_told_to_the_last_millionth(teach):
    """Without broken answers nothing is guessed: the teacher's bill is the job's cost."""
    teacher, server = teach(faults=lambda text, number: 429 if number == 1 and "7" in text else None)
    with sdk(server) as client:
        job = wait_for_end(client, distil(client, upload(client, prompts(30))).id)
        assert job.status == "succeeded", job.error
        report = report_of(client, job)
    assert micros(report["cost"]) == teacher.micros > 0
    assert (report["prompt_tokens"], report["completion_tokens"]) == (30 * 8, 30 * 4)


def test_the_cost_is_told_before_and_the_budget_is_never_exceeded(teach):
    teacher, server = teach()
    body = {
        "model": "demo",
        "method": {"type": "distillation", "distillation": {"teacher": "teacher:big", "hyperparameters": SHORT}},
    }
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        body["training_file"] = upload(client, prompts(200))
        settings = body["method"]["distillation"]
        refused = http.post("/v1/fine_tuning/jobs/estimate", json=body)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "missing_budget"
        settings["max_teacher_cost"] = 1.0
        before = http.post("/v1/fine_tuning/jobs/estimate", json=body).json()
        assert before["object"] == "fine_tuning.job.distillation_estimate"
        assert (before["prompts"], before["requests"]) == (200, 200)
        worst = micros(before["cost_at_most"])
        assert not before["fits"] and teacher.micros == 0
        # What 10 of the longest answers may cost lets many more short ones be asked, and not all.
        settings["max_teacher_cost"] = budget = worst * 10 // 200 / 1e6
        job = client.fine_tuning.jobs.create(**body)
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded", job.error
        report = report_of(client, job)
    spent = micros(report["cost"])
    assert spent == teacher.micros
    # What is left would not pay for the longest answer to the next prompt.
    assert micros(budget) - worst // 200 - 100 <= spent <= micros(budget)
    assert report["ended_by"] == "budget"
    assert report["kept"] + report["left_out"]["not_asked"] == 200 and 10 < report["kept"] < 200


def test_too_few_answers_fail_the_job_with_its_report(teach):
    _, server = teach()
    with sdk(server) as client:
        few = wait_for_end(client, distil(client, upload(client, prompts(9))).id)
        assert few.status == "failed" and few.error.code == "too_few_answers"
        assert "9 can be trained on, and training needs 10" in few.error.message
        assert report_of(client, few)["kept"] == 9
        poor = wait_for_end(client, distil(client, upload(client, prompts(30)), budget=0.01).id)
        assert poor.error.code == "too_few_answers" and "the budget is used" in poor.error.message


def test_three_deaths_change_nothing_of_what_is_kept_and_nothing_is_paid_twice(teach, start_server):
    """What is recorded is not asked again; what was under way at a death is known to the teacher by its key."""
    count = 60
    teacher, server = teach(seconds=0.05)
    with sdk(server) as client:
        file = upload(client, prompts(count))
        undisturbed = wait_for_end(client, distil(client, file).id)
        assert undisturbed.status == "succeeded", undisturbed.error
        expected, bill = client.files.content(undisturbed.training_file).content, teacher.micros
        job = distil(client, file)
    settings, asked = teacher.settings(), sum(teacher.asked.values())
    for death in range(1, 4):
        reached = asked + death * count // 5
        wait_for(lambda: sum(teacher.asked.values()) >= reached, "answers", every=0.01)
        server.kill()
        server = start_server(data_dir=server.data_dir, settings=settings)
    with sdk(server) as client:
        done = wait_for_end(client, job.id)
        assert done.status == "succeeded", done.error
        assert client.files.content(done.training_file).content == expected
        report = report_of(client, done)
        resumed = sum("stopped answering" in event.message for event in events(client, job.id))
    server.stop()
    assert resumed == 3, "each death was one of a job that collected"
    assert teacher.micros == 2 * bill and set(teacher.paid.values()) == {2}
    # Of each death, those that were under way are asked again, and no others.
    again = sum(teacher.asked.values()) - 2 * count
    assert 0 < again <= 3 * 8
    assert bill <= micros(report["cost"]) <= 10_000_000


def test_a_job_that_collects_is_paused_resumed_and_cancelled(teach):
    teacher, server = teach(seconds=0.05)
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        job = distil(client, upload(client, prompts(100)))
        wait_for(lambda: sum(teacher.asked.values()) > 10, "answers")
        assert client.fine_tuning.jobs.retrieve(job.id).status == "running"
        http.post(f"/v1/fine_tuning/jobs/{job.id}/pause").raise_for_status()
        wait_for(lambda: client.fine_tuning.jobs.retrieve(job.id).status == "paused", "the pause")
        asked = sum(teacher.asked.values())
        assert asked < 100
        http.post(f"/v1/fine_tuning/jobs/{job.id}/resume").raise_for_status()
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded", job.error
        assert set(teacher.asked.values()) == {1}, "a pause waits for what is under way"
        second = distil(client, upload(client, [{"prompt": f"Another {number}"} for number in range(100)]))
        wait_for(lambda: sum(teacher.asked.values()) > 110, "answers")
        client.fine_tuning.jobs.cancel(second.id)
        assert wait_for_end(client, second.id).status == "cancelled"


def test_graders_choose_among_several_answers(teach):
    """`best` keeps the answer with the highest score, `all` each one that passes; the same answer again is a duplicate."""
    given = {}

    def answers(text):
        number = given[text] = given.get(text, -1) + 1
        return ["Wrong.", rule(text), rule(text)][number]

    teacher, server = teach(answers)
    grader = {
        "type": "string_check", "name": "right", "operation": "eq",
        "input": "{{sample.output_text}}", "reference": "{{item.right}}",
    }  # fmt: skip
    lines = [{**line, "right": rule(line["prompt"])} for line in prompts(12)]
    with sdk(server) as client:
        job = wait_for_end(client, distil(client, upload(client, lines), samples=3, graders=[grader]).id)
        assert job.status == "succeeded", job.error
        report = report_of(client, job)
        assert [line["messages"][1]["content"] for line in lines_of(client, job)] == [line["right"] for line in lines]
    assert report["left_out"] == {"duplicate": 12, "low_score": 12}
    assert sum(teacher.paid.values()) == 36


def test_a_teacher_grades_answers_of_jobs_and_evals(teach):
    """The same names serve as models of graders; what they cost is part of the budget."""

    def answers(text):
        if "Is it right" in text:
            return json.dumps({"result": "good" if "even" in text else "bad"})
        number = int(text.split()[-1].strip("."))
        return f"{number} is {'even' if number % 2 == 0 else 'not so'}"

    teacher, server = teach(answers)
    judge = {
        "type": "label_model", "name": "judge", "model": "teacher:big", "labels": ["good", "bad"],
        "passing_labels": ["good"], "input": [{"role": "user", "content": "Is it right: {{sample.output_text}}"}],
    }  # fmt: skip
    with sdk(server) as client, httpx.Client(base_url=server.url, timeout=60) as http:
        job = wait_for_end(client, distil(client, upload(client, prompts(24)), graders=[judge]).id)
        assert job.status == "succeeded", job.error
        report = report_of(client, job)
        assert (report["kept"], report["left_out"]) == (12, {"low_score": 12})
        assert micros(report["cost"]) == teacher.micros
        run = {"grader": judge, "model_sample": "4 is even"}
        graded = http.post("/v1/fine_tuning/alpha/graders/run", json=run).json()
        assert graded["reward"] == 1.0, graded
        assert graded["metadata"]["sampled_model_name"] == "teacher:big"
        unknown = {**judge, "model": "teacher:small"}
        refused = http.post("/v1/fine_tuning/alpha/graders/validate", json={"grader": unknown})
        assert refused.status_code == 400 and "`teacher:big`" in refused.json()["error"]["message"]


def test_stored_chats_are_prompts_or_prompts_and_answers(teach):
    teacher, server = teach()
    with sdk(server) as client:
        for number in range(12):
            client.chat.completions.create(
                model="demo", messages=[{"role": "user", "content": f"Tell me of {number}."}], store=True, max_tokens=60,
                metadata={"kind": "kept"}, temperature=0,
            )  # fmt: skip
        stored = {"metadata": {"kind": "kept"}}

        def job_of(**settings):
            distillation = {"stored_completions": stored, "hyperparameters": SHORT, **settings}
            method = {"type": "distillation", "distillation": distillation}
            body = {"model": "demo", "method": method}
            made = httpx.post(f"{server.url}/v1/fine_tuning/jobs", json=body, timeout=60)
            assert made.status_code == 200, made.text
            return wait_for_end(client, made.json()["id"])

        asked = job_of(teacher="teacher:big", max_teacher_cost=1.0)
        assert asked.status == "succeeded", asked.error
        assert len(lines_of(client, asked)) == len(teacher.asked) == 12
        bill = teacher.micros
        given = job_of()
        report = report_of(client, given)
        assert report["cost"] == 0 and teacher.micros == bill
        assert report["kept"] + sum(report["left_out"].values()) == 12


def test_a_model_of_this_server_is_a_teacher(client):
    lines = [{"prompt": f"Where is {name}?"} for name in "the dog,the cat,the cup,the key,the lamp,the hat".split(",")]
    lines += [{"prompt": f"On {day}"} for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")]
    settings = {"teacher": "demo", "max_tokens": 200, "temperature": 0, "max_teacher_cost": None}
    job = wait_for_end(client, distil(client, upload(client, lines), **settings).id)
    report = report_of(client, job)
    assert report["cost"] == 0 and report["answered"] == 12
    assert job.status == "succeeded" or job.error.code == "too_few_answers"


def test_no_key_shows_anywhere(teach):
    """Neither a refusal that repeats the key, nor the log, nor the database has it."""
    teacher, server = teach(faults=lambda text, number: 400 if "3" in text else None)
    with sdk(server) as client:
        job = wait_for_end(client, distil(client, upload(client, prompts(30))).id)
        assert job.status == "succeeded", job.error
        assert report_of(client, job)["left_out"]["unanswered"] == 3
        told = [event.to_json() for event in events(client, job.id)]
    dump = ask_database(server, "select (select json_agg(j) from jobs j)::text || (select json_agg(e) from job_events e)::text")
    assert job.id in dump
    for text in (dump, *told, *server.log):
        assert KEY not in text


def test_a_wrong_key_fails_the_job_until_it_is_resumed(start_server):
    teacher = Teacher(rule)
    try:
        server = start_server(settings={**teacher.settings(), "TEACHER_KEY": "sk-another-one"})
        with sdk(server) as client:
            job = wait_for_end(client, distil(client, upload(client, prompts(12))).id)
            assert job.status == "failed" and job.error.code == "teacher_unavailable"
            assert "it does not take this server's key (401)" in job.error.message
            assert "sk-another-one" not in job.to_json() + "".join(server.log)
        server.stop()
        server = start_server(data_dir=server.data_dir, settings=teacher.settings())
        with sdk(server) as client:
            httpx.post(f"{server.url}/v1/fine_tuning/jobs/{job.id}/resume", timeout=60).raise_for_status()
            assert wait_for_end(client, job.id).status == "succeeded"
        server.stop()
    finally:
        teacher.close()


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"top_logprobs": 20}, "method.distillation.top_logprobs"),
        ({"teacher": "teacher:small"}, "method.distillation.teacher"),
        ({"teacher": "nobody"}, "method.distillation.teacher"),
        ({"samples": 0}, "method.distillation.samples"),
        ({"max_teacher_cost": 0.0000001}, "method.distillation.max_teacher_cost"),
        ({"base_url": "http://elsewhere"}, "method.distillation.base_url"),
    ],
)
def test_what_is_not_applied_is_refused(client, settings, param):
    with pytest.raises(openai.BadRequestError) as refused:
        distil(client, upload(client, prompts(10)), **{"teacher": "demo", **settings})
    assert refused.value.param == param


def wants(tickets):
    """Prompts, and the rule of the teacher: it says in a word what the writer of a letter wants."""
    known = {line["messages"][0]["content"]: json.loads(line["messages"][1]["content"])["wants"] for line in tickets}
    return [{"prompt": text} for text in known], known


def accuracy(client, model, known, **settings):
    """The share of letters of which the model says what the writer wants."""
    right = 0
    for text, wanted in known.items():
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], temperature=0, max_tokens=12, **settings
        )
        right += answer.choices[0].message.content.strip() == wanted
    return right / len(known)


def test_the_demo_model_learns_the_rule_of_its_teacher(teach, tickets, heldout):
    lines, known = wants(tickets[:400])
    _, right = wants(heldout[:50])
    teacher, server = teach(rule=lambda text: known[text])
    with sdk(server) as client:
        before = accuracy(client, "demo", right)
        settings = {"n_epochs": 3, "batch_size": 8, "learning_rate": 2e-3, "rank": 8, "alpha": 16}
        job = distil(client, upload(client, lines), budget=5.0, hyperparameters=settings)
        job = wait_for_end(client, job.id, within=200)
        assert job.status == "succeeded", job.error
        report = report_of(client, job)
        after = accuracy(client, job.fine_tuned_model, right)
    print(f"accuracy {before:.2f} before, {after:.2f} after; cost {report['cost']:.6f} of 5.00")
    assert micros(report["cost"]) == teacher.micros <= 5_000_000
    assert before < 0.1 and after > 0.8


@pytest.mark.timeout(600)
def test_smollm2_learns_the_rule_of_its_teacher(start_server, tickets, heldout):
    """The same on the weights of a real model, SmolLM2-135M-Instruct in 4 bits."""
    lines, known = wants(tickets[:120])
    _, right = wants(heldout[:30])
    teacher = Teacher(rule=lambda text: known[text])
    path = real_models.ALL[0].fetch(real_models.default_folder())
    server = start_server("--model", f"smollm2={path}", settings=teacher.settings())
    try:
        with sdk(server) as client:
            began = time.monotonic()
            before = accuracy(client, "smollm2", right)
            settings = {"n_epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "rank": 8, "alpha": 16}
            job = distil(client, upload(client, lines), budget=1.0, model="smollm2", hyperparameters=settings)
            job = wait_for_end(client, job.id, within=500)
            assert job.status == "succeeded", job.error
            report = report_of(client, job)
            after = accuracy(client, job.fine_tuned_model, right)
            seconds = time.monotonic() - began
        print(f"accuracy {before:.2f} before, {after:.2f} after; cost {report['cost']:.6f} of 1.00; {seconds:.0f} s")
        assert micros(report["cost"]) == teacher.micros <= 1_000_000
        assert before < 0.2 and after > 0.7
    finally:
        server.stop()
        teacher.close()
