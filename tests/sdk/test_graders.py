"""Graders: `/v1/fine_tuning/alpha/graders/run` and `…/validate`, which OpenAI's client calls as below."""

import httpx
import pytest
from conftest import create_key

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
FLAGS = {
    "formula_parse_error",
    "sample_parse_error",
    "truncated_observation_error",
    "unresponsive_reward_error",
    "invalid_variable_error",
    "other_error",
    "python_grader_server_error",
    "python_grader_server_error_type",
    "python_grader_runtime_error",
    "python_grader_runtime_error_details",
    "model_grader_server_error",
    "model_grader_refusal_error",
    "model_grader_parse_error",
    "model_grader_server_error_details",
}


def string_check(operation="eq", reference="{{item.answer}}", **fields):
    return {
        "type": "string_check",
        "name": "check",
        "input": "{{sample.output_text}}",
        "reference": reference,
        "operation": operation,
        **fields,
    }


def similarity(metric, **fields):
    return {
        "type": "text_similarity",
        "name": "like",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "evaluation_metric": metric,
        **fields,
    }


def label(model="demo", labels=("right", "wrong"), passing=("right",)):
    return {
        "type": "label_model",
        "name": "label",
        "model": model,
        "labels": list(labels),
        "passing_labels": list(passing),
        "input": [{"role": "user", "content": "Is {{sample.output_text}} right?"}],
    }


def score(**fields):
    return {
        "type": "score_model",
        "name": "score",
        "model": "demo",
        "input": [{"role": "developer", "content": "Judge."}, {"role": "user", "content": "{{sample.output_text}}"}],
        "sampling_params": {"temperature": 0, "seed": 1},
        **fields,
    }


def run(client, grader, text, item=None):
    return client.post(RUN.removeprefix("/v1"), cast_to=object, body={"grader": grader, "model_sample": text, "item": item})


def refused(http, grader, path=VALIDATE):
    answer = http.post(path, json={"grader": grader, "model_sample": "x"})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def test_the_client_runs_a_grader(client):
    for text, reward in (("Paris", 1), ("paris", 0)):
        answer = client.fine_tuning.alpha.graders.run(
            grader=string_check(), model_sample=text, item={"answer": "Paris"}
        )
        assert answer.reward == reward
        assert (answer.metadata.name, answer.metadata.type) == ("check", "string_check")
        assert answer.metadata.token_usage is None and answer.metadata.sampled_model_name is None
        assert answer.metadata.execution_time >= 0
        assert answer.sub_rewards == answer.model_grader_token_usage_per_model == {}
        errors = answer.metadata.errors.model_dump()
        assert FLAGS <= set(errors) and not any(errors.values())


def test_the_client_validates_a_grader(client):
    answer = client.fine_tuning.alpha.graders.validate(grader=string_check("neq"))
    assert answer.grader.operation == "ne"


@pytest.mark.parametrize(
    "metric, text, reference, expected",
    [
        ("fuzzy_match", "fuzzy wuzzy was a bear", "wuzzy fuzzy was a bear", 0.95),
        ("bleu", "the cat is on the mat", "the cat is on the mat", 1.0),
        ("gleu", "the the the the the the the", "the cat is on the mat", 1 / 11),
        ("meteor", "running", "runs", 0.5),
        ("rouge_1", "a b c d", "a b x y", 0.5),
        ("rouge_5", "a b c d e", "a b c d e", 1.0),
        ("rouge_l", "a c b d", "a b c d", 0.75),
    ],
)
def test_texts_are_compared_by_each_metric(client, metric, text, reference, expected):
    answer = run(client, similarity(metric), text, {"answer": reference})
    assert answer["reward"] == pytest.approx(expected, abs=1e-9), answer


def test_embeddings_are_compared_by_a_model_of_the_server(client, http):
    same = run(client, similarity("cosine", model="demo"), "The train was late.", {"answer": "The train was late."})
    assert same["reward"] == pytest.approx(1, abs=1e-5)
    assert same["metadata"]["sampled_model_name"] == "demo" and same["metadata"]["token_usage"] > 0
    other = run(client, similarity("cosine", model="demo"), "The train was late.", {"answer": "A hen is called Dusty."})
    assert 0 <= other["reward"] < same["reward"]
    # The server has no model that makes embeddings alone.
    assert refused(http, similarity("cosine"))["param"] == "grader.model"


def test_a_model_that_cannot_do_what_a_grader_asks_of_it_is_refused_by_name(aliased):
    with httpx.Client(base_url=aliased.url, timeout=60) as http:
        for grader, says in [
            (label("encoder"), "writes no texts"),
            (label("text-embedding-3-large"), "writes no texts"),
            (similarity("cosine", model="reranker"), "makes no vectors"),
        ]:
            both = {"type": "multi", "name": "m", "graders": {"a": grader, "b": string_check()}, "calculate_output": "a + b"}
            for sent, param in [(grader, "grader.model"), (both, "grader.graders.a.model")]:
                error = refused(http, sent)
                assert (error["param"], error["code"]) == (param, "invalid_grader") and says in error["message"], error


def test_graders_are_combined_by_a_formula(client):
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"exact": string_check(), "words": similarity("rouge_1")},
        "calculate_output": "0.25 * exact + 0.75 * max(words, 0.1) ^ 2",
    }
    answer = run(client, grader, "a b c d", {"answer": "a b x y"})
    assert answer["reward"] == pytest.approx(0.75 * 0.25)
    assert answer["sub_rewards"] == answer["metadata"]["scores"] == {"exact": 0, "words": 0.5}


def test_values_of_json_and_deep_paths_are_filled_in(client):
    grader = string_check("eq", reference="{{item.facts[1].value}} {{item.list}}")
    grader["input"] = "{{sample.output_json.a[0]}} [1,2]"
    assert run(client, grader, '{"a": [4.5]}', {"facts": [0, {"value": 4.5}], "list": [1, 2]})["reward"] == 1


def test_a_grader_that_fails_is_an_answer_with_the_reason(client):
    for grader, text, flag in [
        (string_check(reference="{{item.nothing}}"), "x", "invalid_variable_error"),
        (string_check(input="{{sample.output_json.a}}"), "no JSON", "sample_parse_error"),
        (similarity("fuzzy_match", reference="a"), "a" * 10_001, "other_error"),
        (
            {"type": "multi", "name": "m", "graders": {"a": string_check(reference="y")}, "calculate_output": "1 / a"},
            "x",
            "other_error",
        ),
        (score(sampling_params={"max_completion_tokens": 3}), "x", "model_grader_parse_error"),
        (score(input=[{"role": "user", "content": "too long " * 2000}]), "x", "model_grader_server_error"),
    ]:
        answer = run(client, grader, text, {})
        errors = answer["metadata"]["errors"]
        assert answer["reward"] == 0
        assert [name for name in FLAGS if errors[name] is True] == [flag], errors
        assert errors["details"]


def test_a_model_chooses_a_label(client):
    # The grammar leaves the model one label.
    right = run(client, label(labels=["right"]), "Paris")
    assert (right["reward"], right["metadata"]["sampled_model_name"]) == (1, "demo")
    assert right["model_grader_token_usage_per_model"] == {"demo": right["metadata"]["token_usage"]}
    assert right["metadata"]["token_usage"] > 0
    both = run(client, label(passing=("right", "wrong")), "Paris")
    assert both["reward"] == 1 and not both["metadata"]["errors"]["details"]


def test_a_model_gives_a_score_within_the_range(client):
    # The demo model knows nothing of scores: a number from 2 to 3 is a clamped one.
    seen = 0
    for seed in range(6):
        grader = score(range=[2, 3], sampling_params={"temperature": 0.5, "seed": seed})
        answer = run(client, grader, "Paris")
        errors = answer["metadata"]["errors"]
        if not errors["details"]:
            assert 2 <= answer["reward"] <= 3
            seen += 1
        else:
            assert errors["model_grader_parse_error"] and answer["reward"] == 0
    assert seen > 0, "no answer had a number"


def test_what_cannot_be_run_is_refused_by_name(http):
    for grader, param, part in [
        ({"type": "python", "name": "p", "source": "def grade(sample, item): return 1"}, "grader.type", "[graders]"),
        (string_check("equals"), "grader.operation", "eq, ne, like or ilike"),
        (string_check(reference="{{reference}}"), "grader.reference", "names no value"),
        (string_check(extra=1), "grader.extra", "not a field"),
        (similarity("bertscore"), "grader.evaluation_metric", "rouge_l"),
        (label(model="nowhere"), "grader.model", "does not exist"),
        ({**label(), "base_url": "http://elsewhere"}, "grader.base_url", "not a field"),
        (score(sampling_params={"reasoning_effort": "much"}), "grader.sampling_params.reasoning_effort", "xhigh"),
    ]:
        for path in (VALIDATE, RUN):
            error = refused(http, grader, path)
            assert error["param"] == param and part in error["message"], error
            assert error["code"] == "invalid_grader" and error["type"] == "invalid_request_error"
    answer = http.post(RUN, json={"grader": string_check(), "model_sample": "x", "reference_answer": "y"})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "reference_answer"
    answer = http.post(RUN, json={"grader": string_check()})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "model_sample"


def test_a_grader_asks_as_its_caller(binary, tenants):
    """Tokens count for the caller's key, in the usage and in its limits."""
    key, _ = create_key(binary, tenants.server.data_dir, "grading")
    with httpx.Client(base_url=tenants.url, timeout=60, headers={"Authorization": f"Bearer {key}"}) as http:
        answer = http.post(RUN, json={"grader": label(labels=["right"]), "model_sample": "x"}).json()
        (row,) = http.get("/v1/usage", params={"group_by": ""}).json()["data"]
    assert answer["reward"] == 1, answer
    assert row["requests"] == 1
    assert row["prompt_tokens"] + row["completion_tokens"] == answer["metadata"]["token_usage"] > 0
