"""Prompts that begin as an earlier one did: found in the cache, told in the usage, and never across organisations."""

import concurrent.futures

import httpx
import pytest
from conftest import create_key, sdk

BLOCK = 16
PROMPT = "The ship sails at dawn with bread, salt and forty sacks of grain, and nobody on the quay knows where it goes."


def ask(client, prompt=PROMPT, **settings):
    answer = client.completions.create(model="demo", prompt=prompt, max_tokens=12, temperature=0, **settings)
    return answer.choices[0].text, answer.usage


def cached(usage):
    return usage.prompt_tokens_details.cached_tokens


def test_a_prompt_seen_before_is_found_and_answered_the_same(client):
    prompt = "Found again: " + PROMPT
    first, _ = ask(client, prompt)
    again, usage = ask(client, prompt)
    assert again == first
    assert cached(usage) == (usage.prompt_tokens - 1) // BLOCK * BLOCK > 0
    stream = client.completions.create(
        model="demo", prompt=prompt, max_tokens=12, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == first
    assert cached(chunks[-1].usage) == cached(usage)


def test_the_next_turn_of_a_chat_finds_the_turns_before(client):
    messages = [{"role": "user", "content": "Remember this: " + PROMPT}]
    first = client.chat.completions.create(model="demo", messages=messages, max_tokens=20, temperature=0)
    messages.append({"role": "assistant", "content": first.choices[0].message.content})
    messages.append({"role": "user", "content": "Where does it go?"})
    second = client.chat.completions.create(model="demo", messages=messages, max_tokens=5)
    assert cached(second.usage) >= (first.usage.prompt_tokens - BLOCK) // BLOCK * BLOCK > 0


def test_an_organization_does_not_find_what_another_one_sent(binary, tenants):
    prompt = "A secret: " + PROMPT
    clients = [sdk(tenants.server, create_key(binary, tenants.server.data_dir, name)[0]) for name in ("one", "two")]
    texts = set()
    for client in clients:
        text, usage = ask(client, prompt)
        texts.add(text)
        assert cached(usage) == 0
    assert len(texts) == 1
    assert all(cached(ask(client, prompt)[1]) > 0 for client in clients)


def test_found_tokens_are_in_the_account(binary, tenants):
    key, _ = create_key(binary, tenants.server.data_dir, "thrifty")
    client = sdk(tenants.server, key)
    found = sum(cached(ask(client)[1]) for _ in range(3))
    headers = {"Authorization": f"Bearer {key}"}
    answer = httpx.get(tenants.url + "/v1/usage", params={"group_by": ""}, headers=headers).json()
    assert answer["data"][0]["cached_tokens"] == found > 0


def test_it_can_be_switched_off(start_server):
    server = start_server(settings={"ATTUNE_LIMITS__PREFIX_CACHE": "false"})
    client = sdk(server)
    answers = [ask(client) for _ in range(2)]
    assert answers[0][0] == answers[1][0]
    assert [cached(usage) for _, usage in answers] == [0, 0]


def test_a_cache_too_small_for_all_changes_no_answer(start_server, client):
    """The smallest cache that can be set: what does not fit waits its turn, or gives way and is computed again."""
    small = sdk(start_server(settings={"ATTUNE_LIMITS__KV_CACHE_MIB": "1"}))
    prompts = [f"{number}: {PROMPT}" for number in range(24)]

    def text(prompt):
        return ask(small, prompt)[0]

    expected = [ask(client, prompt)[0] for prompt in prompts]
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        assert list(pool.map(text, prompts)) == expected


@pytest.mark.parametrize(
    "name",
    [
        "attune_prefix_hit_tokens_total",
        "attune_preemptions_total",
        "attune_engine_failed_steps_total",
        "attune_kv_blocks_used",
        "attune_kv_blocks_cached",
        "attune_kv_blocks_free",
        "attune_queue_seconds_bucket",
        "attune_time_to_first_token_seconds_bucket",
        "attune_time_between_tokens_seconds_bucket",
        "attune_step_rows_bucket",
    ],
)
def test_the_schedule_has_numbers(http, client, name):
    ask(client)
    assert f'{name}{{model="demo"' in http.get("/metrics").text
