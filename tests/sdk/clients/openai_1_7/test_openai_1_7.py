"""openai 1.7.1: the last client of the 1.x line that knows `/v1/fine_tunes`."""

import asyncio

import openai
import pytest
from shared import jsonl, prompts, wait_for


@pytest.fixture(scope="module")
def client():
    with openai.OpenAI(max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def training_file(client):
    return client.files.create(file=("old.jsonl", jsonl(prompts(20))), purpose="fine-tune")


def test_strict_validation_accepts_the_answers():
    """`_strict_response_validation` raises where a field has another type than the client's models say."""
    with openai.OpenAI(max_retries=0, _strict_response_validation=True) as client:
        assert "demo" in [model.id for model in client.models.list()]
        assert client.completions.create(model="ada", prompt="On Friday", max_tokens=4).choices[0].finish_reason
        chat = client.chat.completions.create(
            model="gpt-3.5-turbo", messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        assert chat.choices[0].message.role == "assistant"
        vector = client.embeddings.create(model="ada", input="Hello", encoding_format="float").data[0].embedding
        assert sum(value * value for value in vector) == pytest.approx(1, abs=1e-4)


def test_a_fine_tune_goes_from_file_to_model(client, training_file):
    assert client.files.wait_for_processing(training_file.id, max_wait_seconds=30).status == "processed"
    job = client.fine_tunes.create(
        training_file=training_file.id, model="ada", hyperparameters={"n_epochs": 1}, batch_size=4, suffix="one seven"
    )
    assert job.id.startswith("ft-")
    assert job.model == "ada"
    assert (job.hyperparams.n_epochs, job.hyperparams.batch_size) == (1, 4)
    assert job.hyperparams.learning_rate_multiplier > 0
    assert job.hyperparams.prompt_loss_weight >= 0

    with client.fine_tunes.list_events(job.id, stream=True, timeout=120) as stream:
        messages = [event.message for event in stream]
    assert messages
    done = client.fine_tunes.retrieve(job.id)
    assert done.status == "succeeded", done
    assert [event.message for event in done.events] == messages
    assert [event.message for event in client.fine_tunes.list_events(job.id, stream=False).data] == messages
    assert done.result_files[0].purpose == "fine-tune-results"
    assert "step" in client.files.content(done.result_files[0].id).text.splitlines()[0]
    assert job.id in [other.id for other in client.fine_tunes.list()]
    answer = client.completions.create(model=done.fine_tuned_model, prompt="Hello", max_tokens=4)
    assert answer.model == done.fine_tuned_model
    assert client.models.delete(done.fine_tuned_model).deleted
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve(done.fine_tuned_model)


def test_a_fine_tune_is_cancelled(client, training_file):
    job = client.fine_tunes.create(training_file=training_file.id, model="ada", hyperparameters={"n_epochs": 50})
    assert client.fine_tunes.cancel(job.id).id == job.id
    assert wait_for(lambda: client.fine_tunes.retrieve(job.id).status == "cancelled", "the cancellation")


def test_the_asynchronous_client_streams(client):
    async def stream():
        async with openai.AsyncOpenAI(max_retries=0) as client:
            chunks = [
                chunk
                async for chunk in await client.completions.create(
                    model="ada", prompt="On Friday", max_tokens=12, temperature=0, stream=True
                )
            ]
        return "".join(chunk.choices[0].text for chunk in chunks)

    whole = client.completions.create(model="ada", prompt="On Friday", max_tokens=12, temperature=0)
    assert asyncio.run(stream()) == whole.choices[0].text


def test_a_vector_is_the_same_in_both_encodings(client):
    floats = client.embeddings.create(model="ada", input=["a", "b"], encoding_format="float")
    packed = client.embeddings.create(model="ada", input=["a", "b"])
    for one, other in zip(floats.data, packed.data, strict=True):
        assert one.index == other.index
        assert one.embedding == pytest.approx(other.embedding, abs=1e-7)


def test_errors_arrive_as_their_classes(client):
    with pytest.raises(openai.NotFoundError) as fault:
        client.completions.create(model="nobody", prompt="x")
    assert fault.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as fault:
        client.completions.create(model="ada", prompt="x", temperature=9)
    assert fault.value.param == "temperature"
