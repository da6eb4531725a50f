"""LangChain's own standard suites for integrations, against `ChatOpenAI` and `OpenAIEmbeddings`."""

import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from shared import BASE_URL, KEY


class TestEmbeddingsOfTokens(EmbeddingsIntegrationTests):
    """With what LangChain does by default: it sends OpenAI's token ids instead of text."""

    @property
    def embeddings_class(self):
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "text-embedding-3-small", "base_url": BASE_URL, "api_key": KEY}


class TestEmbeddingsOfText(TestEmbeddingsOfTokens):
    """With text."""

    @property
    def embedding_model_params(self):
        return {"model": "demo", "base_url": BASE_URL, "api_key": KEY, "check_embedding_ctx_length": False}


class TestChat(ChatModelIntegrationTests):
    """The demo model knows its own small world and nothing of tools, so what a test wants it to choose of its own accord
    stands below as unfit for it; what it must be able to do when told is in the suite."""

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        return {
            "model": "gpt-4o-mini", "base_url": BASE_URL, "api_key": KEY, "max_tokens": 200, "temperature": 0, "seed": 1,
            "max_retries": 0, "stream_usage": True, "use_responses_api": False,
        }  # fmt: skip

    @property
    def supports_json_mode(self):
        return True

    @property
    def supports_model_override(self):
        return True

    @property
    def model_override_value(self):
        return "gpt-3.5-turbo"
