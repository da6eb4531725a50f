"""Prompts that begin as an earlier one did: found in the cache, told in the usage, and never across organisations."""

import concurrent.futures

import adapterlib
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


@pytest.mark.parametrize("settings", [{"top_p": 0.9}, {"n": 3}, {"best_of": 4, "n": 2}, {"extra_body": {"top_k": 20}}])
def test_what_is_drawn_at_random_is_the_same_from_the_cache_with_its_log_probabilities(client, settings, endless):
    asked = {"prompt": f"Drawn with {settings}: {PROMPT}", "temperature": 1, "seed": 5, "logprobs": 3, "max_tokens": 20}
    asked |= {"model": "demo", "logit_bias": endless, **settings}
    first, second, third = (client.completions.create(**asked) for _ in range(3))
    assert len({choice.text for choice in first.choices}) == len(first.choices), "drawn at random"
    for again in (second, third):
        assert cached(again.usage) == (again.usage.prompt_tokens - 1) // BLOCK * BLOCK > 0
        for one, other in zip(first.choices, again.choices, strict=True):
            assert (other.text, other.logprobs.tokens) == (one.text, one.logprobs.tokens)
            # On some devices a batch of another shape changes the last digits.
            assert other.logprobs.token_logprobs == pytest.approx(one.logprobs.token_logprobs, abs=1e-4)
            for high, other_high in zip(one.logprobs.top_logprobs, other.logprobs.top_logprobs, strict=True):
                assert other_high == pytest.approx(high, abs=1e-4)
    if "best_of" not in settings:
        streamed = {}
        for chunk in client.completions.create(**asked, stream=True):
            for choice in chunk.choices:
                streamed[choice.index] = streamed.get(choice.index, "") + choice.text
        assert [streamed[choice.index] for choice in first.choices] == [choice.text for choice in first.choices]


def test_a_chat_drawn_at_random_is_the_same_from_the_cache(client):
    asked = {"model": "demo", "messages": [{"role": "user", "content": "Drawn: " + PROMPT}], "max_tokens": 20}
    asked |= {"temperature": 1.2, "seed": 8, "logprobs": True, "top_logprobs": 2, "n": 2}
    first, again = (client.chat.completions.create(**asked) for _ in range(2))
    assert cached(again.usage) > 0
    for one, other in zip(first.choices, again.choices, strict=True):
        assert one.message.content == other.message.content
        values = [[token.logprob for token in choice.logprobs.content] for choice in (one, other)]
        assert values[1] == pytest.approx(values[0], abs=1e-4)


def test_new_weights_under_an_old_name_find_nothing_of_the_old_ones(client, http, server, endless):
    """Base, adapter and its successor share a prompt and a name, and never a block."""
    prompt = "Swapped: " + PROMPT
    paths = [adapterlib.put(server.data_dir / "swapped" / str(seed), seed) for seed in (1, 2)]

    def load(name, path):
        body = {"lora_name": name, "lora_path": path, "load_inplace": True}
        assert http.post("/v1/load_lora_adapter", json=body).status_code == 200

    def ask(model):
        answer = client.completions.create(
            model=model, prompt=prompt, max_tokens=12, temperature=1, seed=3, logprobs=0, logit_bias=endless
        )
        return answer.choices[0].logprobs.token_logprobs, cached(answer.usage)

    base, found = ask("demo")
    assert found == 0
    values = []
    for path in paths:
        load("swapped", path)
        value, found = ask("swapped")
        assert found == 0, "a generation that nobody has asked before"
        again, found = ask("swapped")
        assert found > 0 and again == pytest.approx(value, abs=1e-4)
        values.append(value)
    assert len({tuple(round(value, 3) for value in one) for one in (base, *values)}) == 3, "all can be told apart"
    # The first generation again, under either name: what it left is right for it.
    for name in ("swapped", "swapped-back"):
        load(name, paths[0])
        value, found = ask(name)
        assert found > 0 and value == pytest.approx(values[0], abs=1e-4)
        assert http.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code == 200
    value, found = ask("demo")
    assert found > 0 and value == pytest.approx(base, abs=1e-4)


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
