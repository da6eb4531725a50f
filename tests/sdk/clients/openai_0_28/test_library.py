"""The library of openai 0.28.1."""

import asyncio
import csv
import io

import openai
import pytest
from shared import WIDTH, jsonl, prompts


def test_an_embedding_comes_packed_and_is_unpacked():
    answer = openai.Embedding.create(model="text-embedding-3-small", input=["a", "b"])
    assert [len(item["embedding"]) for item in answer["data"]] == [WIDTH, WIDTH]
    plain = openai.Embedding.create(model="text-embedding-3-small", input=["a", "b"], encoding_format="float")
    assert answer["data"][1]["embedding"] == pytest.approx(plain["data"][1]["embedding"], abs=1e-7)


def test_the_answers_headers_are_read():
    answer = openai.Completion.create(model="ada", prompt="On Friday", max_tokens=4)
    assert answer.response_ms >= 0


def test_a_stream_joins_to_the_whole_answer():
    question = {"model": "ada", "prompt": "On Friday", "max_tokens": 12, "temperature": 0}
    whole = openai.Completion.create(**question).choices[0].text
    assert "".join(chunk.choices[0].text for chunk in openai.Completion.create(**question, stream=True)) == whole

    async def asynchronous():
        stream = await openai.Completion.acreate(**question, stream=True)
        return "".join([chunk.choices[0].text async for chunk in stream])

    assert asyncio.run(asynchronous()) == whole


def test_a_fine_tuned_model_goes_on_learning_and_its_results_can_be_read():
    file = openai.File.create(
        file=io.BytesIO(jsonl(prompts(20))), purpose="fine-tune", user_provided_filename="a.jsonl"
    )
    first = openai.FineTune.create(training_file=file.id, model="ada", n_epochs=1, batch_size=4)
    model = followed(first.id).fine_tuned_model
    second = openai.FineTune.create(training_file=file.id, model=model, n_epochs=1, batch_size=4)
    done = followed(second.id)
    assert done.model == model
    content = openai.File.download(done.result_files[0].id).decode()
    for row in csv.DictReader(io.StringIO(content)):
        for cell in row.values():
            assert cell == "" or float(cell) == float(cell)
    for made in (model, done.fine_tuned_model):
        assert openai.Model.delete(made).deleted


def followed(job):
    """The fine-tune after its stream of events ended."""
    messages = [event["message"] for event in openai.FineTune.stream_events(job)]
    assert messages
    done = openai.FineTune.retrieve(job)
    assert done.status == "succeeded", done
    return done


def test_the_newer_jobs_are_known_too():
    file = openai.File.create(file=io.BytesIO(jsonl(prompts(20))), purpose="fine-tune")
    job = openai.FineTuningJob.create(training_file=file.id, model="ada", hyperparameters={"n_epochs": 50, "batch_size": 1})
    assert job.id in [other.id for other in openai.FineTuningJob.list(limit=5).data]
    assert openai.FineTuningJob.list_events(job.id, limit=2).object == "list"
    assert openai.FineTuningJob.cancel(job.id).id == job.id


def test_a_models_name_is_decoded_from_the_path():
    for name in ("ft:ada:org::x", "a/b", "naïve"):
        with pytest.raises(openai.error.InvalidRequestError) as fault:
            openai.Model.retrieve(name)
        assert fault.value.http_status == 404
        assert name in str(fault.value)


def test_a_wrong_request_is_an_invalid_request_error():
    with pytest.raises(openai.error.InvalidRequestError) as fault:
        openai.Completion.create(model="ada", prompt="x", temperature=9)
    assert fault.value.param == "temperature"
