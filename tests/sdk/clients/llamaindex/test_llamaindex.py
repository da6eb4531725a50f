"""LlamaIndex with its classes for servers that speak OpenAI's API."""

import asyncio
import math

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.node_parser import SentenceSplitter
from llama_index.embeddings.openai import OpenAIEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from shared import BASE_URL, ENCODER, ENCODER_WIDTH, KEY, WIDTH


def model(**settings):
    defaults = {
        "model": "demo", "api_base": BASE_URL, "api_key": KEY, "max_tokens": 24, "temperature": 0, "max_retries": 0,
        "is_chat_model": True, "context_window": 1024,
    }  # fmt: skip
    return OpenAILike(**{**defaults, **settings})


@pytest.fixture(scope="module")
def embedder():
    return OpenAILikeEmbedding(model_name="text-embedding-3-small", api_base=BASE_URL, api_key=KEY, max_retries=0)


@pytest.mark.parametrize("is_chat_model", [True, False])
def test_a_completion_is_the_same_whole_and_streamed(is_chat_model):
    llm = model(is_chat_model=is_chat_model)
    whole = llm.complete("On Friday").text
    assert whole
    assert list(llm.stream_complete("On Friday"))[-1].text == whole
    assert asyncio.run(llm.acomplete("On Friday")).text == whole


def test_a_chat_is_the_same_whole_and_streamed():
    messages = [ChatMessage(role="system", content="Be short."), ChatMessage(role="user", content="Hello")]
    whole = model().chat(messages).message.content
    assert whole
    assert list(model().stream_chat(messages))[-1].message.content == whole


def test_texts_become_vectors_in_order(embedder):
    texts = [f"letter {number}" for number in range(120)]  # more than one request's worth
    vectors = embedder.get_text_embedding_batch(texts)
    assert [len(vector) for vector in vectors] == [WIDTH] * len(texts)
    for at in (0, 99, 100, 119):
        assert vectors[at] == pytest.approx(embedder.get_text_embedding(texts[at]), abs=1e-5)


def test_the_class_for_openai_embeds_with_an_encoder():
    embedder = OpenAIEmbedding(model=ENCODER, api_base=BASE_URL, api_key=KEY, max_retries=0)
    whole = embedder.get_text_embedding("On Friday the ferry is late.")
    assert len(whole) == ENCODER_WIDTH
    short = OpenAIEmbedding(model=ENCODER, dimensions=8, api_base=BASE_URL, api_key=KEY, max_retries=0)
    length = math.hypot(*whole[:8])
    wanted = [value / length for value in whole[:8]]
    assert short.get_text_embedding("On Friday the ferry is late.") == pytest.approx(wanted, abs=1e-6)


def test_an_index_finds_the_text_that_was_asked_for(embedder):
    texts = ["Brasmere is known for copper pots.", "The ferry to the island is late on Friday.", "Zelie sells coats."]
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in texts],
        embed_model=embedder,
        # LlamaIndex would download OpenAI's token tables only to count.
        transformations=[SentenceSplitter(tokenizer=str.split)],
    )
    found = index.as_retriever(similarity_top_k=1).retrieve(texts[1])
    assert found[0].text == texts[1]
    answer = index.as_query_engine(llm=model(), similarity_top_k=1).query("When is the ferry late?")
    assert answer.source_nodes
    assert str(answer)
