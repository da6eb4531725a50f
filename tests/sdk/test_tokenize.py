"""Tokens: what a model makes of a text, and back."""

import attunelib
import httpx
import pytest

TEXT = "Where is the café? – 東京 🙂\n"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]


def tokenize(http, **body):
    answer = http.post("/tokenize", json={"model": "demo", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def detokenize(http, tokens):
    answer = http.post("/detokenize", json={"model": "demo", "tokens": tokens})
    assert answer.status_code == 200, answer.text
    return answer.json()["prompt"]


def test_a_text_becomes_tokens_and_these_the_text(http):
    answer = tokenize(http, prompt=TEXT, add_special_tokens=False)
    assert answer["count"] == len(answer["tokens"]) > 0
    assert answer["max_model_len"] > answer["count"]
    assert answer["token_strs"] is None
    assert detokenize(http, answer["tokens"]) == TEXT


def test_the_tokens_are_those_of_an_answer_to_the_same_prompt(http, client):
    count = tokenize(http, prompt=TEXT)["count"]
    assert client.completions.create(model="demo", prompt=TEXT, max_tokens=1).usage.prompt_tokens == count


def test_spellings_are_those_of_the_vocabulary(http, vocabulary):
    answer = tokenize(http, prompt=TEXT, return_token_strs=True)
    assert [vocabulary[text] for text in answer["token_strs"]] == answer["tokens"]


def test_a_conversation_is_rendered_with_the_model_s_template(http, client):
    answer = tokenize(http, messages=MESSAGES)
    chat = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=1)
    assert answer["count"] == chat.usage.prompt_tokens
    without = tokenize(http, messages=MESSAGES, add_generation_prompt=False)
    assert answer["tokens"][: without["count"]] == without["tokens"]
    assert without["count"] < answer["count"]
    assert "Be brief." in detokenize(http, answer["tokens"])


def test_both_stand_under_v1_too_and_need_no_model_where_there_is_one(http):
    tokens = http.post("/v1/tokenize", json={"prompt": TEXT}).json()["tokens"]
    assert tokens == tokenize(http, prompt=TEXT)["tokens"]
    assert http.post("/v1/detokenize", json={"tokens": tokens}).json()["prompt"].endswith(TEXT)


def test_a_model_must_be_named_where_there_are_several(start_server):
    server = start_server("--model", f"one={attunelib.DEMO}", "--model", f"two={attunelib.DEMO}")
    answer = httpx.post(server.url + "/tokenize", json={"prompt": TEXT})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    assert httpx.post(server.url + "/tokenize", json={"prompt": TEXT, "model": "two"}).status_code == 200
    server.stop()


def test_nothing_is_no_token_and_the_other_way_round(http):
    assert tokenize(http, prompt="", add_special_tokens=False)["tokens"] == []
    assert detokenize(http, []) == ""


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": MESSAGES}, "messages"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/tokenize", {"messages": MESSAGES, "continue_final_message": True}, "continue_final_message"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, 10_000_000]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": "a"}, "tokens"),
    ],
)
def test_a_wrong_field_is_named(http, path, body, param):
    answer = http.post(path, json={"model": "demo", **body})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


def test_the_last_id_has_a_text_and_the_one_behind_it_is_refused(http, vocabulary):
    last = max(vocabulary.values())
    assert detokenize(http, [last])
    answer = http.post("/detokenize", json={"tokens": [last + 1]})
    assert answer.status_code == 400
    assert str(last) in answer.json()["error"]["message"]


def test_an_unknown_model_is_not_found(http):
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert http.post(path, json={"model": "nobody", **body}).status_code == 404
