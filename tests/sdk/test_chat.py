"""Chat completions."""

import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

HELLO = [{"role": "user", "content": "Hello!"}]


def chat(client, messages=None, **settings):
    return client.chat.completions.create(
        **{"model": "demo", "messages": messages or HELLO, "max_tokens": 60, "temperature": 0, **settings}
    )


def test_an_answer_has_a_role_a_reason_and_usage(client):
    answer = chat(client)
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_joins_to_the_same_text_and_tells_usage(client):
    whole = chat(client)
    chunks = list(chat(client, stream=True, stream_options={"include_usage": True}))
    *parts, last = chunks
    assert parts[0].object == "chat.completion.chunk"
    assert parts[0].choices[0].delta.role == "assistant"
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole.choices[0].message.content
    assert [part.choices[0].finish_reason for part in parts][-1] == "stop"
    assert last.choices == []
    assert last.usage == whole.usage


def test_a_stream_without_usage_has_a_choice_in_every_chunk(client):
    assert all(len(chunk.choices) == 1 for chunk in chat(client, stream=True))


def test_the_demo_model_knows_its_world(client, questions):
    asked = questions[:20]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda question: chat(client, question["messages"]).choices[0].message.content, asked))
    right = [
        re.search(rf"\b{re.escape(question['key'])}\b", answer, re.IGNORECASE) is not None
        for question, answer in zip(asked, answers)
    ]
    assert sum(right) >= 15, list(zip(right, answers))


def test_answers_do_not_depend_on_who_asks_at_the_same_time(client, questions):
    asked = [question["messages"] for question in questions[:12]]
    alone = [chat(client, messages).choices[0].message.content for messages in asked]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda messages: chat(client, messages).choices[0].message.content, asked))
    assert together == alone


def test_content_in_parts_is_the_same_as_text(client):
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}]}]
    assert chat(client, parts).choices[0].message.content == chat(client).choices[0].message.content


def test_max_completion_tokens_is_kept(client, endless):
    settings = {"max_tokens": None, "max_completion_tokens": 4, "logit_bias": endless}
    answer = chat(client, **settings)
    assert answer.usage.completion_tokens == 4
    assert answer.choices[0].finish_reason == "length"


def test_a_stop_text_is_absent(client):
    text = chat(client).choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    assert chat(client, stop=stop).choices[0].message.content == text[: text.index(stop)]


def test_two_answers_differ(client, endless):
    answer = chat(client, n=2, temperature=1, seed=5, logit_bias=endless, max_tokens=20)
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "wizard", "content": "Hello!"}],
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}],
    ],
)
def test_messages_that_cannot_be_understood_are_refused(client, messages):
    with pytest.raises(openai.BadRequestError) as fault:
        client.chat.completions.create(model="demo", messages=messages)
    assert fault.value.param.startswith("messages")
