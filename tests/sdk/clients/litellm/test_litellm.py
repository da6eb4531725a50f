"""litellm with Attune as a provider that speaks OpenAI's API."""

import asyncio
import io

import litellm
import pytest
from shared import BASE_URL, KEY, URL, WIDTH, jsonl, tickets, wait_for

SERVER = {"api_base": BASE_URL, "api_key": KEY, "num_retries": 0}
MESSAGES = [{"role": "user", "content": "Hello"}]


def test_embeddings():
    answer = litellm.embedding(model="openai/text-embedding-3-small", input=["a", "b"], **SERVER)
    assert [len(item["embedding"]) for item in answer.data] == [WIDTH, WIDTH]
    assert answer.usage.prompt_tokens > 0


def test_documents_are_reranked():
    documents = ["A dog was running.", "The cat sits on the mat.", "boats"]
    question = {"model": "hosted_vllm/reranker", "query": "Where is the cat?", "documents": documents}
    answer = litellm.rerank(**question, top_n=2, api_base=URL, api_key=KEY)
    scores = [result["relevance_score"] for result in answer.results]
    assert len(scores) == 2 and scores == sorted(scores, reverse=True)
    assert len({result["index"] for result in answer.results}) == 2


def test_a_text_completion_is_the_same_whole_and_streamed():
    question = {"model": "text-completion-openai/demo", "prompt": "On Friday", "max_tokens": 12, "temperature": 0}
    whole = litellm.text_completion(**question, **SERVER).choices[0].text
    assert whole
    chunks = litellm.text_completion(**question, **SERVER, stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in chunks) == whole


def test_a_chat_is_the_same_whole_and_streamed():
    question = {"model": "openai/gpt-4o-mini", "messages": MESSAGES, "max_tokens": 12, "temperature": 0, **SERVER}
    whole = litellm.completion(**question)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(litellm.completion(**question, stream=True, stream_options={"include_usage": True}))
    assert litellm.stream_chunk_builder(chunks, messages=MESSAGES).choices[0].message.content == text

    async def asynchronous():
        stream = await litellm.acompletion(**question, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(asynchronous()) == text


def test_faults_arrive_as_their_classes():
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/nobody", messages=MESSAGES, **SERVER)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/demo", messages=MESSAGES, top_p=9, **SERVER)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(model="openai/demo", messages=[{"role": "user", "content": "a " * 5000}], **SERVER)


def test_a_file_becomes_a_model():
    provider = {"custom_llm_provider": "openai", "api_base": BASE_URL, "api_key": KEY}
    training = ("train.jsonl", io.BytesIO(jsonl(tickets(20))))
    file = litellm.create_file(file=training, purpose="fine-tune", **provider)
    assert litellm.file_content(file.id, **provider).content == jsonl(tickets(20))
    assert file.id in [other.id for other in litellm.file_list(**provider)]
    job = litellm.create_fine_tuning_job(
        model="demo", training_file=file.id, hyperparameters={"n_epochs": 1, "batch_size": 4}, suffix="lite", **provider
    )
    assert job.id in [other.id for other in litellm.list_fine_tuning_jobs(**provider, limit=10)]

    def ended():
        now = litellm.retrieve_fine_tuning_job(fine_tuning_job_id=job.id, **provider)
        return now if now.status in ("succeeded", "failed", "cancelled") else None

    done = wait_for(ended, "the end of the job")
    assert done.status == "succeeded", done.error
    answer = litellm.completion(model="openai/" + done.fine_tuned_model, messages=MESSAGES, max_tokens=4, **SERVER)
    assert answer.choices[0].message.content
    long = litellm.create_fine_tuning_job(
        model="demo", training_file=file.id, hyperparameters={"n_epochs": 50}, **provider
    )
    assert litellm.cancel_fine_tuning_job(fine_tuning_job_id=long.id, **provider).id == long.id

    def is_cancelled():
        return litellm.retrieve_fine_tuning_job(fine_tuning_job_id=long.id, **provider).status == "cancelled"

    wait_for(is_cancelled, "the cancellation")
    assert litellm.file_delete(file.id, **provider).deleted
