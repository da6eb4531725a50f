"""Rerank, score and classify with tiny classifiers of random weights. What sentence-transformers' `CrossEncoder` says of them is
in `tests/fixtures/encoders`."""

import json

import httpx
import numpy as np
import pytest
from conftest import ENCODERS

NEAR = 1e-5


@pytest.fixture(scope="module")
def ranking(start_server):
    """Plain HTTP to a server of both kinds of heads, and of an encoder without one."""
    models = {"score": "bert_score", "classes": "roberta_classes", "plain": "mpnet"}
    arguments = [part for name, folder in models.items() for part in ("--model", f"{name}={ENCODERS / folder}")]
    with httpx.Client(base_url=start_server(*arguments).url, timeout=60) as http:
        yield http


def ask(http, path, **body):
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refusal(http, path, **body):
    answer = http.post(path, json=body)
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def tensor(folder, name):
    """A tensor of a folder's reference, all of which are f32."""
    data = (ENCODERS / folder / "reference.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    entry = json.loads(data[8:8 + size])[name]
    start, end = entry["data_offsets"]
    return np.frombuffer(data[8 + size:][start:end], "<f4").reshape(entry["shape"])


def cases(folder):
    return json.loads((ENCODERS / folder / "pairs.json").read_text(encoding="utf-8"))["cases"]


@pytest.fixture(scope="module")
def pairs():
    """Pairs with their reference scores, those that had to be cut included."""
    return [(case["query"], case["document"], score) for case, score in zip(cases("bert_score"), tensor("bert_score", "scores"))]


def test_pairs_have_the_scores_that_sentence_transformers_gives_them(ranking, pairs):
    queries, documents, wanted = zip(*pairs)
    answer = ask(ranking, "/v1/score", model="score", text_1=queries, text_2=documents, truncate_prompt_tokens=-1)
    assert answer["object"] == "list"
    assert [item["index"] for item in answer["data"]] == list(range(len(pairs)))
    assert {item["object"] for item in answer["data"]} == {"score"}
    assert np.abs(np.array([item["score"] for item in answer["data"]]) - wanted).max() < NEAR
    assert answer["usage"]["total_tokens"] == sum(len(case["input_ids"]) for case in cases("bert_score"))


def test_a_pair_alone_has_the_same_score(ranking, pairs):
    for query, document, wanted in pairs:
        answer = ask(ranking, "/v1/score", model="score", queries=query, documents=document, truncate_prompt_tokens=-1)
        (item,) = answer["data"]
        assert item["score"] == pytest.approx(wanted, abs=NEAR), (query, document)


def test_one_text_is_scored_with_each_of_many(ranking, pairs):
    query, documents = pairs[0][0], [document for of, document, _ in pairs if of == pairs[0][0]]
    assert len(documents) > 1
    answer = ask(ranking, "/v1/score", model="score", text_1=query, text_2=documents)
    wanted = [score for of, _, score in pairs if of == query]
    assert [item["score"] for item in answer["data"]] == pytest.approx(wanted, abs=NEAR)


def test_a_pair_that_is_too_long_is_refused_unless_it_is_to_be_cut(ranking, pairs):
    query, document, _ = max(pairs, key=lambda pair: len(pair[1]))
    error = refusal(ranking, "/v1/score", model="score", text_1=query, text_2=["boats", document])
    assert error["code"] == "context_length_exceeded" and "text_2[1]" in error["message"], error


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_sorted_by_the_scores_of_their_pairs(ranking, pairs, path):
    query, documents = pairs[0][0], [document for _, document, _ in pairs[:5]]
    answer = ask(ranking, path, model="score", query=query, documents=documents)
    scored = ask(ranking, "/v1/score", model="score", text_1=query, text_2=documents, truncate_prompt_tokens=-1)
    scores = [item["score"] for item in scored["data"]]
    assert answer["id"]
    assert [result["index"] for result in answer["results"]] == sorted(range(5), key=lambda number: -scores[number])
    for result in answer["results"]:
        assert result["relevance_score"] == pytest.approx(scores[result["index"]], abs=1e-6)
        assert "document" not in result


def test_documents_come_back_as_jina_sends_them(ranking):
    documents = ["boats", {"text": "The cat sits on the mat."}, "A dog was running."]
    answer = ask(ranking, "/v1/rerank", model="score", query="cat", documents=documents, top_n=2, return_documents=True)
    texts = ["boats", "The cat sits on the mat.", "A dog was running."]
    assert len(answer["results"]) == 2
    for result in answer["results"]:
        assert result["document"] == {"text": texts[result["index"]]}
    assert answer["usage"]["total_tokens"] > 0


def test_tokens_have_the_labels_that_transformers_finds(ranking):
    wanted = tensor("roberta_classes", "probabilities")
    labels = json.loads((ENCODERS / "roberta_classes" / "config.json").read_text())["id2label"]
    ids = [case["input_ids"] for case in cases("roberta_classes")]
    data = ask(ranking, "/v1/classify", model="classes", input=ids)["data"]
    assert [item["index"] for item in data] == list(range(len(ids)))
    for item, expected in zip(data, wanted, strict=True):
        assert np.abs(np.array(item["probs"]) - expected).max() < NEAR
        assert (item["num_classes"], item["label"]) == (len(labels), labels[str(expected.argmax())])


def test_a_text_has_the_labels_of_its_tokens(ranking):
    text = "The cat sits on the mat."
    tokens = ask(ranking, "/v1/tokenize", model="classes", prompt=text)["tokens"]
    of_text, of_tokens = (ask(ranking, "/v1/classify", model="classes", input=given)["data"] for given in (text, tokens))
    assert of_text[0]["probs"] == pytest.approx(of_tokens[0]["probs"], abs=1e-6)
    assert sum(of_text[0]["probs"]) == pytest.approx(1, abs=1e-5)


def test_an_encoder_without_a_head_scores_by_the_likeness_of_vectors(ranking):
    texts = ["The cat sits on the mat.", "boats"]
    vectors = [np.array(item["embedding"]) for item in ask(ranking, "/v1/embeddings", model="plain", input=texts)["data"]]
    (item,) = ask(ranking, "/v1/score", model="plain", text_1=texts[0], text_2=texts[1])["data"]
    likeness = vectors[0] @ vectors[1] / np.linalg.norm(vectors[0]) / np.linalg.norm(vectors[1])
    assert item["score"] == pytest.approx(likeness, abs=1e-6)


def test_an_encoder_without_a_head_ranks_by_the_likeness_of_vectors(ranking):
    query, documents = "The cat sits on the mat.", ["boats", "A cat sat on a mat.", "A dog was running."]
    scored = ask(ranking, "/v1/score", model="plain", text_1=query, text_2=documents)["data"]
    results = ask(ranking, "/v1/rerank", model="plain", query=query, documents=documents)["results"]
    assert [result["index"] for result in results] == sorted(range(3), key=lambda number: -scored[number]["score"])
    for result in results:
        assert result["relevance_score"] == pytest.approx(scored[result["index"]]["score"], abs=1e-6)
    shorter = ask(ranking, "/v1/rerank", model="plain", query=query, documents=documents, max_tokens_per_doc=3)
    assert shorter["usage"]["total_tokens"] < sum(len(text) for text in [query, *documents])


@pytest.mark.parametrize(("model", "routes"), [("score", ["rerank", "score", "classify"]), ("classes", ["classify"])])
def test_a_classifier_makes_no_vectors_and_says_what_it_does(ranking, model, routes):
    error = refusal(ranking, "/v1/embeddings", model=model, input=["cat"])
    assert (error["param"], error["code"], error["type"]) == ("model", "unsupported_value", "invalid_request_error")
    assert f"`{model}`" in error["message"]
    named = [route for route in ("embeddings", "rerank", "score", "classify") if f"/v1/{route}" in error["message"]]
    assert named == routes, error


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"model": "plain", "query": "cat", "documents": ["boats", ""]}),
        ("/v1/rerank", {"model": "classes", "query": "cat", "documents": ["boats"]}),
        ("/v1/score", {"model": "classes", "text_1": "cat", "text_2": "boats"}),
        ("/v1/classify", {"model": "plain", "input": "cat"}),
        ("/v1/rerank", {"model": "score", "query": "", "documents": ["boats"]}),
        ("/v1/rerank", {"model": "score", "query": "cat", "documents": []}),
        ("/v1/score", {"model": "score", "text_1": ["a", "b"], "text_2": ["a", "b", "c"]}),
    ],
)
def test_what_a_model_cannot_do_is_refused(ranking, path, body):
    assert refusal(ranking, path, **body)["message"]
