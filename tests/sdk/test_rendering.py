"""What is trained is what is served: a conversation has the same tokens in a training file, in a chat, in /tokenize."""

import json
import shutil
import time

import attunelib
import httpx
import openai
import pytest
from conftest import QUICK, events, sdk, steps, upload, wait_for, wait_for_end

TAKEOFF = {
    "type": "function",
    "function": {
        "strict": True,
        "name": "takeoff",
        "parameters": {"type": "object", "properties": {"altitude": {"type": "integer"}}},
    },
}
USER = {"role": "user", "content": "Take off to 50 m"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "takeoff", "arguments": '{"altitude": 50}'}}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
OLDER = {"role": "assistant", "content": "", "function_call": CALL["function"]}
SAID = {"role": "assistant", "content": "Hello.", "tool_calls": [], "refusal": None}

# Opens reasoning unless it is switched off, and writes the reasoning of earlier answers.
THINKS = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>
{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% endif %}{% endif %}"""


# Writes the time of the day, to the second.
DATED = "{{ strftime_now('%d %b %Y %H:%M:%S') }}" + THINKS


def with_template(folder, template):
    """A copy of the demo model with another chat template."""
    shutil.copytree(attunelib.DEMO, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


def with_end_of_text(folder):
    """A copy of the demo model that ends texts with another token than the mark behind an answer, as base models do."""
    shutil.copytree(attunelib.DEMO, folder)
    for name in ("config.json", "generation_config.json"):
        (folder / name).write_text(json.dumps({**json.loads((folder / name).read_text()), "eos_token_id": 0}))
    return folder


@pytest.fixture(scope="module")
def thinking(start_server, tmp_path_factory):
    """A server whose models have templates with a switch, with the time, and another end token."""
    folder = tmp_path_factory.mktemp("templates")
    models = [("thinking", THINKS), ("dated", DATED)]
    named = [f"{name}={with_template(folder / name, template)}" for name, template in models]
    named.append(f"base={with_end_of_text(folder / 'base')}")
    server = start_server(*(part for model in named for part in ("--model", model)))
    yield server
    server.stop()


def tokenize(url, model, **body):
    answer = httpx.post(url + "/tokenize", json={"model": model, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["tokens"]


def text(url, model, **body):
    tokens = tokenize(url, model, **body)
    return httpx.post(url + "/detokenize", json={"model": model, "tokens": tokens}).json()["prompt"]


def estimate(server, model, lines):
    file = upload(sdk(server), lines)
    answer = httpx.post(server.url + "/v1/fine_tuning/jobs/estimate", json={"model": model, "training_file": file})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize(
    ("answer", "tools"),
    [
        (CALLS, {"tools": [TAKEOFF]}),
        (OLDER, {"functions": [TAKEOFF["function"]]}),
        (SAID, {"tools": []}),
        (SAID, {}),
        ({"role": "assistant", "content": None, "refusal": "No."}, {}),
    ],
)
def test_an_answer_is_trained_behind_the_prompt_that_is_served(server, answer, tools):
    lines = [{"messages": [{**USER, "content": f"Number {number}"}, answer], **tools} for number in range(10, 20)]
    found = estimate(server, "demo", lines)
    prompt = found["tokens_per_epoch"] - found["target_tokens_per_epoch"]
    shown = {"tools": [TAKEOFF]} if "functions" in tools else tools
    client = sdk(server)
    for line in lines[:2]:
        asked = {"messages": line["messages"][:1]}
        served = tokenize(server.url, "demo", **asked, **shown)
        assert len(served) * 10 == prompt
        usage = client.chat.completions.create(model="demo", max_tokens=1, **asked, **tools).usage
        assert usage.prompt_tokens == len(served)
    history = tokenize(server.url, "demo", **{**lines[0], **shown, "functions": None}, add_generation_prompt=False)
    # The line feed behind the answer is not learned.
    assert (len(history) - 1) * 10 == found["tokens_per_epoch"]
    assert found["warnings"] == []


def test_the_mark_behind_an_answer_ends_it_where_texts_end_with_another_token(thinking):
    said = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "Number 1."}]
    lines = [{"messages": [*said, {"role": "user", "content": f"{number}"}, said[1]]} for number in range(10, 20)]
    found = estimate(thinking, "base", lines)
    history = tokenize(thinking.url, "base", messages=lines[0]["messages"], add_generation_prompt=False)
    assert (len(history) - 1) * 10 == found["tokens_per_epoch"], "both turns are one sequence, up to the last mark"
    answer = tokenize(thinking.url, "base", prompt="Number 1.<|im_end|>")
    assert 2 * len(answer) * 10 == found["target_tokens_per_epoch"]
    chat = sdk(thinking).chat.completions.create
    for end in ("0", "2"):
        choice = chat(model="base", messages=said[:1], max_tokens=5, logit_bias={end: 100}).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("", "stop")


def test_a_switch_of_the_template_reaches_it_in_chats_and_tokenize(thinking):
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    assert text(thinking.url, "thinking", messages=[USER]).endswith("<|im_start|>assistant\n<think>\n")
    assert text(thinking.url, "thinking", messages=[USER], **off).endswith("50 m<|im_end|>\n<|im_start|>assistant\n")
    client = sdk(thinking)
    for extra in ({}, off):
        usage = client.chat.completions.create(model="thinking", messages=[USER], max_tokens=1, extra_body=extra).usage
        assert usage.prompt_tokens == len(tokenize(thinking.url, "thinking", messages=[USER], **extra))


def test_reasoning_of_earlier_answers_reaches_the_template(thinking):
    messages = [USER, {"role": "assistant", "content": "Done.", "reasoning_content": "It is 50."}, USER]
    assert "<think>\nIt is 50.\n</think>\nDone.<|im_end|>" in text(thinking.url, "thinking", messages=messages)
    usage = sdk(thinking).chat.completions.create(model="thinking", messages=messages, max_tokens=1).usage
    assert usage.prompt_tokens == len(tokenize(thinking.url, "thinking", messages=messages))


def test_the_last_message_can_be_continued(http, client):
    messages = [USER, {"role": "assistant", "content": "The height is"}]
    url = str(http.base_url).rstrip("/")
    assert text(url, "demo", messages=messages, continue_final_message=True).endswith("assistant\nThe height is")
    closed = tokenize(url, "demo", messages=messages, add_generation_prompt=False)
    for extra, tokens in (
        ({"continue_final_message": True}, tokenize(url, "demo", messages=messages, continue_final_message=True)),
        ({"add_generation_prompt": False}, closed),
    ):
        usage = client.chat.completions.create(model="demo", messages=messages, max_tokens=1, extra_body=extra).usage
        assert usage.prompt_tokens == len(tokens)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"enable_thinking": False}, "enable_thinking"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": "x"}, "chat_template_kwargs"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)
def test_chats_and_tokenize_refuse_the_same_fields_by_name(http, client, fields, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=[USER], max_tokens=1, extra_body=fields)
    assert refused.value.param == param
    answer = http.post("/tokenize", json={"model": "demo", "messages": [USER], **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("arguments", ["", " ", "null", "{}"])
def test_a_call_without_arguments_has_an_empty_object(http, arguments):
    call = {"id": "c", "type": None, "function": {"name": "takeoff", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, USER]
    assert '"arguments": {}}' in text(str(http.base_url).rstrip("/"), "demo", messages=messages)


def test_a_job_whose_template_writes_the_time_goes_on_later(thinking):
    client = sdk(thinking)
    answers = [{"role": "assistant", "content": f"Number {number}."} for number in range(64)]
    lines = [{"messages": [USER, answer]} for answer in answers]
    method = {"type": "supervised", "supervised": {"hyperparameters": {**QUICK, "n_epochs": 50}}}
    job = client.fine_tuning.jobs.create(model="dated", training_file=upload(client, lines), method=method, seed=7).id
    wait_for(lambda: steps(client, job), "the first step")
    client.fine_tuning.jobs.pause(job)
    wait_for(lambda: client.fine_tuning.jobs.retrieve(job).status == "paused", "the pause")
    second = int(time.time())
    wait_for(lambda: int(time.time()) > second, "another second")
    client.fine_tuning.jobs.resume(job)
    begins = ("Resumed", "The checkpoint")
    told = wait_for(
        lambda: [event.message for event in events(client, job) if event.message.startswith(begins)],
        "the second attempt",
    )
    client.fine_tuning.jobs.cancel(job)
    wait_for_end(client, job)
    assert told[0].startswith("Resumed after step"), told
