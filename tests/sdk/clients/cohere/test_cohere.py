"""Cohere's client, first and second version of its API, for reranking."""

import asyncio

import cohere
import pytest
from shared import KEY, URL

QUERY = "Where is the cat?"
DOCUMENTS = ["A dog was running through the green garden.", "The cat sits on the mat.", "boats"]


@pytest.fixture(scope="module", params=[cohere.Client, cohere.ClientV2])
def client(request):
    return request.param(api_key=KEY, base_url=URL)


def ranked(answer):
    """The documents' numbers by falling score, which is checked."""
    scores = [result.relevance_score for result in answer.results]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < score < 1 for score in scores)
    return [result.index for result in answer.results]


def test_documents_are_sorted_by_score(client):
    answer = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    assert answer.id
    assert sorted(ranked(answer)) == [0, 1, 2]
    assert len({result.relevance_score for result in answer.results}) == 3


def test_the_best_are_the_first_of_all(client):
    everything = ranked(client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS))
    assert ranked(client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS, top_n=2)) == everything[:2]


def test_the_order_of_the_request_changes_no_score(client):
    def scores(documents):
        answer = client.rerank(model="reranker", query=QUERY, documents=documents)
        return {documents[result.index]: result.relevance_score for result in answer.results}

    assert scores(DOCUMENTS[::-1]) == pytest.approx(scores(DOCUMENTS), abs=1e-6)


def test_the_search_unit_is_told(client):
    answer = client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    assert answer.meta.billed_units.search_units == 1


def test_the_first_version_returns_documents():
    client = cohere.Client(api_key=KEY, base_url=URL)
    documents = [{"text": text} for text in DOCUMENTS]
    answer = client.rerank(model="reranker", query=QUERY, documents=documents, return_documents=True)
    assert [result.document.text for result in answer.results] == [DOCUMENTS[number] for number in ranked(answer)]


def test_the_asynchronous_client_gets_the_same():
    async def ask():
        async with cohere.AsyncClientV2(api_key=KEY, base_url=URL) as client:
            return await client.rerank(model="reranker", query=QUERY, documents=DOCUMENTS)

    other = cohere.ClientV2(api_key=KEY, base_url=URL).rerank(model="reranker", query=QUERY, documents=DOCUMENTS)
    assert ranked(asyncio.run(ask())) == ranked(other)


def test_a_model_without_a_head_ranks_by_the_likeness_of_vectors(client):
    answer = client.rerank(model="demo", query=QUERY, documents=[QUERY, *DOCUMENTS])
    scores = [result.relevance_score for result in answer.results]
    assert answer.results[0].index == 0 and scores[0] == pytest.approx(1, abs=1e-5)
    assert scores == sorted(scores, reverse=True) and scores[-1] < 1


def test_a_model_that_is_not_served_is_refused(client):
    with pytest.raises(cohere.NotFoundError):
        client.rerank(model="no-such-model", query=QUERY, documents=DOCUMENTS)
