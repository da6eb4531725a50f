"""Scores, ranking and labels: what a model without a classification head answers, and what is refused."""

import math

import pytest

QUESTION = "Where is Kessing?"
DOCUMENTS = ["Kessing lies on the river Hollin.", "One side of my radio is cracked.", "Hello!"]


def post(http, path, **fields):
    return http.post(path, json={"model": "demo", **fields})


def vectors(http, texts):
    answer = post(http, "/v1/embeddings", input=texts)
    assert answer.status_code == 200, answer.text
    return [item["embedding"] for item in answer.json()["data"]]


def cosine(left, right):
    product = sum(a * b for a, b in zip(left, right, strict=True))
    return product / math.sqrt(sum(a * a for a in left) * sum(b * b for b in right))


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents")])
def test_scores_of_vectors_are_their_cosines(http, names):
    first, second = names
    answer = post(http, "/v1/score", **{first: QUESTION, second: DOCUMENTS}).json()
    question, *documents = vectors(http, [QUESTION, *DOCUMENTS])
    assert answer["object"] == "list" and answer["model"] == "demo" and answer["id"].startswith("score-")
    assert [(item["index"], item["object"]) for item in answer["data"]] == [(index, "score") for index in range(3)]
    for item, document in zip(answer["data"], documents, strict=True):
        assert math.isclose(item["score"], cosine(question, document), abs_tol=1e-5)


def test_texts_are_scored_each_with_its_own(http):
    crossed = post(http, "/v1/score", text_1=DOCUMENTS, text_2=DOCUMENTS[::-1]).json()["data"]
    scores = [item["score"] for item in crossed]
    assert math.isclose(scores[1], 1, abs_tol=1e-5), "the one in the middle meets itself"
    assert math.isclose(scores[0], scores[2], abs_tol=1e-5) and scores[0] < 0.999


def test_a_score_costs_the_tokens_of_both_texts(http):
    usage = post(http, "/v1/score", text_1=QUESTION, text_2=DOCUMENTS).json()["usage"]
    alone = post(http, "/v1/embeddings", input=[QUESTION, *DOCUMENTS]).json()["usage"]
    assert usage == alone


def test_a_long_text_is_refused_or_cut(http):
    long = "The river Hollin flows through Kessing. " * 400
    answer = post(http, "/v1/score", text_1=QUESTION, text_2=["fine", long])
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["code"], answer.json()["error"]["param"]) == ("context_length_exceeded", "text_2")
    cut = post(http, "/v1/score", text_1=QUESTION, text_2=["fine", long], truncate_prompt_tokens=-1)
    assert cut.status_code == 200, cut.text


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_a_model_without_a_head_ranks_by_the_likeness_of_vectors(http, path):
    scores = [item["score"] for item in post(http, "/v1/score", text_1=QUESTION, text_2=DOCUMENTS).json()["data"]]
    answer = post(http, path, query=QUESTION, documents=DOCUMENTS)
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert sorted(result["index"] for result in results) == list(range(len(DOCUMENTS)))
    found = [result["relevance_score"] for result in results]
    assert found == pytest.approx(sorted(scores, reverse=True), abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/classify", "/classify"])
def test_a_model_without_a_head_classifies_nothing(http, path):
    answer = post(http, path, input=DOCUMENTS)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "model"
    assert "no classification head" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/score", {"text_1": QUESTION}, "text_2"),
        ("/v1/score", {"text_1": [QUESTION] * 2, "text_2": DOCUMENTS}, "text_1"),
        ("/v1/score", {"text_1": QUESTION, "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": QUESTION, "text_2": ["a", ""]}, "text_2"),
        ("/v1/score", {"text_1": QUESTION, "text_2": [1, 2]}, "text_2"),
        ("/v1/score", {"text_1": QUESTION, "text_2": "a", "use_activation": False}, "use_activation"),
        ("/v1/rerank", {"query": QUESTION}, "documents"),
        ("/v1/rerank", {"query": QUESTION, "documents": [{"title": "a"}]}, "documents[0]"),
        ("/v1/rerank", {"query": QUESTION, "documents": DOCUMENTS, "rank_fields": ["title"]}, "rank_fields"),
        ("/v1/classify", {}, "input"),
    ],
)
def test_a_wrong_request_is_refused_by_name(http, path, fields, param):
    answer = post(http, path, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
