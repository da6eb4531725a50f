"""Haystack's embedders for OpenAI's API, with an encoder."""

import pytest
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from shared import BASE_URL, ENCODER, ENCODER_WIDTH, KEY

SERVER = {"api_base_url": BASE_URL, "api_key": Secret.from_token(KEY), "model": ENCODER, "max_retries": 0}
TEXTS = ["On Friday the ferry is late.", "boats", "The cat sits on the mat."]


def test_a_text_becomes_a_vector():
    answer = OpenAITextEmbedder(**SERVER).run(TEXTS[0])
    assert len(answer["embedding"]) == ENCODER_WIDTH
    assert answer["meta"]["usage"]["prompt_tokens"] > 0


def test_documents_have_the_vectors_of_their_texts():
    embedder = OpenAIDocumentEmbedder(**SERVER, batch_size=2, progress_bar=False)
    documents = embedder.run([Document(content=text) for text in TEXTS])["documents"]
    for document in documents:
        alone = OpenAITextEmbedder(**SERVER).run(document.content)["embedding"]
        assert document.embedding == pytest.approx(alone, abs=1e-6)


def test_fewer_dimensions_are_asked_for():
    assert len(OpenAITextEmbedder(**SERVER, dimensions=8).run(TEXTS[0])["embedding"]) == 8
