"""Pydantic AI over chat completions: its ways to an output, with tagged unions above all, streams, tools that ask for
another attempt, and tools that wait for a person."""

import asyncio
import json
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from typing import Annotated, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, TypeAdapter, WithJsonSchema
from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    Embedder,
    ModelHTTPError,
    ModelRetry,
    NativeOutput,
    PromptedOutput,
    RunContext,
    ToolDenied,
    ToolOutput,
    UnexpectedModelBehavior,
)
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from shared import BASE_URL, DEMO, KEY, WIDTH

QUESTION = "What goes to the island?"


class Battery(BaseModel):
    power: Literal["battery"]
    range: int = Field(ge=10, le=900, multiple_of=10)


class Diesel(BaseModel):
    power: Literal["diesel"]
    litres: float = Field(gt=0, lt=0.5)


Engine = Annotated[Battery | Diesel, Field(discriminator="power")]


class Car(BaseModel):
    kind: Literal["car"]
    engine: Engine
    plate: str = Field(pattern="^[A-Z]{2}-[0-9]{1,4}$")


class Bike(BaseModel):
    kind: Literal["bike"]
    gears: int = Field(ge=1, le=27)
    engine: Engine | None = None


class Ferry(BaseModel):
    kind: Literal["ferry", "ship"]
    cars: list[Car] = Field(min_length=1, max_length=2)


Vehicle = Annotated[Car | Bike | Ferry, Field(discriminator="kind")]


class Trip(BaseModel):
    vehicle: Vehicle
    back: Vehicle | None
    day: Literal["mon", "tue"]


class Colour(Enum):
    RED = "red"
    GREEN = "grün"


class Number(int, Enum):
    ONE = 1
    TWO = 2


class Fields(BaseModel):
    at: datetime
    day: date
    clock: time
    # As a text with its digits; pydantic's own schema allows any text here.
    price: Annotated[Decimal, WithJsonSchema({"type": "string", "pattern": r"^[0-9]{1,3}\.[0-9]{2}$"})]
    id: UUID
    colour: Colour
    number: Number
    share: float = Field(gt=0, lt=1)
    big: int = Field(ge=2**53 + 1, le=2**53 + 3)
    counts: dict[Literal["a", "b"], int] = Field(max_length=2)
    open: dict[str, bool] = Field(max_length=1)
    pair: tuple[Annotated[int, Field(ge=0, le=9)], Colour]
    name: Annotated[str, Field(min_length=2, max_length=6)]


class Crew(BaseModel):
    colours: set[Colour] = Field(max_length=2)


class Anything(BaseModel, extra="allow"):
    pass


class Tree(BaseModel):
    leaf: Annotated[int, Field(ge=0, le=9)]
    left: "Tree | None"
    right: "Tree | None"


def provider():
    return OpenAIProvider(base_url=BASE_URL, api_key=KEY)


def agent(output_type=str, name="long", retries=0, **others):
    settings = {"temperature": 0, "max_tokens": 900, "parallel_tool_calls": False, **others.pop("settings", {})}
    others.setdefault("model_settings", settings)
    return Agent(OpenAIChatModel(name, provider=provider()), output_type=output_type, retries=retries, **others)


def drawn(seed):
    """Settings for one of many answers."""
    return {"temperature": 1, "seed": seed}


def check_usage(usage, requests):
    assert usage.requests == requests
    assert usage.input_tokens > 0 < usage.output_tokens


def wrapped(way, kind):
    return way(kind) if way else kind


@pytest.mark.parametrize("way", [NativeOutput, ToolOutput, None])
@pytest.mark.parametrize("kind", [Trip, Car | Bike, Fields])
def test_an_output_is_of_its_type(way, kind):
    result = agent(wrapped(way, kind), settings={**drawn(1), "max_tokens": 2500}).run_sync(QUESTION)
    TypeAdapter(kind).validate_python(result.output)
    assert isinstance(result.output, kind)
    check_usage(result.usage, 1)


@pytest.mark.parametrize("way", [NativeOutput, None])
def test_a_tagged_union_and_a_list_of_outputs_are_told_apart(way):
    for kinds in ([Car, Bike, Ferry], [Battery, Diesel]):
        output = agent(way(kinds) if way else kinds, settings=drawn(3)).run_sync(QUESTION).output
        assert type(output) in kinds
    tagged = agent(wrapped(way, Vehicle), settings=drawn(3)).run_sync(QUESTION).output
    assert isinstance(tagged, Car | Bike | Ferry)


def test_a_set_is_an_output_of_tools_and_refused_as_a_form():
    """No grammar keeps the items of a list apart: a form would be a promise that cannot be kept."""
    assert isinstance(agent(ToolOutput(Crew)).run_sync(QUESTION).output, Crew)
    with pytest.raises(ModelHTTPError, match="uniqueItems") as told:
        agent(NativeOutput(Crew)).run_sync(QUESTION)
    assert told.value.status_code == 400


@pytest.mark.parametrize("way", [NativeOutput, ToolOutput])
def test_a_type_that_holds_itself_ends(way):
    vocabulary = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # Where `null` may stand, it stands.
    settings = {"logit_bias": {str(vocabulary["n"]): 100}}
    tree = agent(way(Tree), settings=settings).run_sync(QUESTION).output
    assert (tree.left, tree.right) == (None, None)


def test_a_prompted_output_is_some_object():
    """Pydantic AI asks for `json_object` here: an object it is, but of no schema."""
    vocabulary = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    # The object ends as soon as it may.
    asked = agent(PromptedOutput(Anything), settings={"logit_bias": {str(vocabulary[brace]): 100 for brace in "{}"}})
    assert isinstance(asked.run_sync(QUESTION).output, Anything)
    with pytest.raises(UnexpectedModelBehavior):
        agent(PromptedOutput(Trip), retries=1, settings={"max_tokens": 40}).run_sync(QUESTION)


@pytest.mark.parametrize("way", [NativeOutput, ToolOutput])
def test_an_output_grows_in_a_stream_to_what_it_is_as_a_whole(way):
    async def run():
        asked = agent(way(Trip))
        async with asked.run_stream(QUESTION) as stream:
            partial = [output async for output in stream.stream_output(debounce_by=None)]
            return partial, await stream.get_output(), stream.usage

    partial, output, usage = asyncio.run(run())
    assert output == partial[-1] == agent(way(Trip)).run_sync(QUESTION).output
    check_usage(usage() if callable(usage) else usage, 1)


def test_a_text_streams():
    async def run():
        async with agent(settings={"max_tokens": 12}).run_stream(QUESTION) as stream:
            return [text async for text in stream.stream_text(delta=True, debounce_by=None)], await stream.get_output()

    deltas, text = asyncio.run(run())
    assert "".join(deltas) == text == agent(settings={"max_tokens": 12}).run_sync(QUESTION).output


@pytest.mark.parametrize("way", [NativeOutput, ToolOutput])
def test_an_output_that_its_validator_refuses_is_asked_for_again(way):
    asked = agent(way(Trip), retries=2)
    attempts = []

    @asked.output_validator
    def refuse_twice(trip: Trip) -> Trip:
        attempts.append(trip)
        if len(attempts) < 3:
            raise ModelRetry(f"attempt {len(attempts)} is not good")
        return trip

    result = asked.run_sync(QUESTION)
    assert len(attempts) == 3
    check_usage(result.usage, 3)
    assert "attempt 2 is not good" in result.all_messages_json().decode()


def until_done(done):
    """Settings for each step of a run: the tools are called until `done()`, then the model speaks."""

    def settings(context: RunContext):
        choice = "none" if done() else "required"
        return {"temperature": 0, "max_tokens": 300, "parallel_tool_calls": False, "tool_choice": choice}

    return settings


def test_a_tool_that_asks_for_another_attempt_is_called_again():
    calls = []
    asked = agent(model_settings=until_done(lambda: len(calls) == 3), retries=3)

    @asked.tool_plain(retries=3)
    def book(vehicle: Vehicle, on: date, guests: Annotated[int, Field(ge=1, le=4)] = 1) -> dict[str, str]:
        """Books a way to the island.

        Args:
            vehicle: What travels.
            on: The day.
            guests: How many.
        """
        calls.append((vehicle, on, guests))
        if len(calls) < 3:
            raise ModelRetry(f"attempt {len(calls)}: full")
        return {"booked": "grün"}

    result = asked.run_sync(QUESTION)
    assert result.output
    for vehicle, on, guests in calls:
        assert isinstance(vehicle, Car | Bike | Ferry)
        assert isinstance(on, date)
        assert 1 <= guests <= 4
    check_usage(result.usage, 4)
    # A history is kept as JSON and goes on.
    history = ModelMessagesTypeAdapter.validate_json(result.all_messages_json())
    assert agent(settings={"max_tokens": 20}).run_sync("And back?", message_history=history).output


def test_a_tool_comes_before_an_output():
    calls = []

    def settings(context: RunContext):
        chosen = "count" if not calls else "final_result"
        return {"temperature": 0, "max_tokens": 600, "parallel_tool_calls": False, "tool_choice": [chosen]}

    asked = agent(ToolOutput(Trip), model_settings=settings)

    @asked.tool_plain
    def count(by: dict[Literal["day"], bool]) -> int:
        calls.append(by)
        return 3

    assert isinstance(asked.run_sync(QUESTION).output, Trip)
    assert len(calls) == 1


@pytest.mark.parametrize("approved", [True, ToolDenied("No.")])
def test_a_tool_waits_for_a_person(approved):
    calls, answers = [], None
    asked = agent([str, DeferredToolRequests], model_settings=until_done(lambda: answers))

    @asked.tool_plain(requires_approval=True)
    def sink(ship: Ferry) -> str:
        calls.append(ship)
        return "sunk"

    first = asked.run_sync(QUESTION)
    (request,) = first.output.approvals
    assert isinstance(TypeAdapter(Ferry).validate_python(request.args_as_dict()), Ferry)
    assert not calls
    answers = DeferredToolResults(approvals={request.tool_call_id: approved})
    second = asked.run_sync(message_history=first.all_messages(), deferred_tool_results=answers)
    assert isinstance(second.output, str)
    assert len(calls) == (approved is True)


def test_texts_become_vectors():
    embedder = Embedder(OpenAIEmbeddingModel("text-embedding-3-small", provider=provider()))
    result = embedder.embed_documents_sync(["a", "b"])
    assert [len(vector) for vector in result.embeddings] == [WIDTH, WIDTH]
    assert result.usage.input_tokens > 0


def test_faults_arrive_with_their_status():
    with pytest.raises(ModelHTTPError) as told:
        agent(name="nobody").run_sync(QUESTION)
    assert told.value.status_code == 404
    assert told.value.body["code"] == "model_not_found"
    with pytest.raises(UnexpectedModelBehavior):
        agent(NativeOutput(Trip), settings={"max_tokens": 3}).run_sync(QUESTION)
