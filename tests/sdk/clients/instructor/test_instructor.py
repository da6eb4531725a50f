"""instructor in each of its modes for OpenAI's API: objects, unions, lists, parts of a stream, and attempts with the
fault of the one before."""

import asyncio
import itertools
import json
from collections.abc import Iterable
from enum import Enum
from typing import Annotated, Literal

import instructor
import openai
import pytest
from instructor.core import IncompleteOutputException, InstructorRetryException
from pydantic import AfterValidator, BaseModel, Field
from shared import BASE_URL, DEMO, KEY

MESSAGES = [{"role": "user", "content": "Who lives on the island?"}]
QUESTION = {"model": "long", "messages": MESSAGES, "max_tokens": 900, "temperature": 0}
# The modes in which the server holds the answer to the schema.
HELD = {
    "tools": {"mode": instructor.Mode.TOOLS},
    "strict tools": {"mode": instructor.Mode.TOOLS, "strict": True},
    "tools_strict": {"mode": instructor.Mode.TOOLS_STRICT},
    "json_schema": {"mode": instructor.Mode.JSON_SCHEMA},
}


class Role(Enum):
    FISHER = "fisher"
    SMITH = "smith"


class Boat(BaseModel):
    kind: Literal["boat"]
    length: float = Field(ge=1, le=30)


class House(BaseModel):
    kind: Literal["house"]
    rooms: int = Field(ge=1, le=9)
    garden: bool


class Person(BaseModel):
    """A person of the island."""

    name: str = Field(max_length=8, description="The first name")
    role: Role
    owns: Annotated[Boat | House, Field(discriminator="kind")]
    keys: list[Literal["door", "gate"]] = Field(max_length=2)
    nick: str | None = Field(max_length=5)


class Place(BaseModel):
    town: str = Field(max_length=8)
    trade: Literal["fish", "iron"]
    ships: list[Annotated[int, Field(ge=0, le=9)]] = Field(max_length=3)


class Tour(BaseModel):
    start: Place
    others: list[Place] = Field(min_length=1, max_length=2)


class Village(BaseModel):
    mayor: Person
    people: list[Person] = Field(min_length=1, max_length=2)


def client(mode, asynchronous=False):
    kind = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    return instructor.from_openai(kind(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60), mode=mode)


def bias(text, value):
    """A bias for the token that is this text, or against all that hold it."""
    tokenizer = json.loads((DEMO / "tokenizer.json").read_text(encoding="utf-8"))
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = {**tokenizer["model"]["vocab"], **added}
    return {str(token): value for word, token in vocabulary.items() if word == text or (value < 0 and text in word)}


def asker(way):
    """A function that asks in one of the ways, at one attempt."""
    others = dict(HELD[way])
    create = client(others.pop("mode")).create
    return lambda kind, **settings: create(
        response_model=kind, **{**QUESTION, "max_retries": 0, **others, **settings}
    )


@pytest.mark.parametrize("way", HELD)
def test_an_answer_is_of_its_model(way):
    ask = asker(way)
    for settings in ({}, {"temperature": 1, "seed": 1}):
        assert isinstance(ask(Village, **settings), Village)


@pytest.mark.parametrize("way", HELD)
def test_a_plain_type_is_an_answer_too(way):
    ask = asker(way)
    assert ask(Literal["yes", "no"]) in ("yes", "no")
    assert isinstance(ask(bool), bool)
    assert isinstance(ask(Role), Role)


@pytest.mark.parametrize("way", ["tools", "json_schema"])
def test_maybe_holds_a_model_or_nothing(way):
    # Where a text may end, it ends.
    answer = asker(way)(instructor.Maybe(Person), logit_bias=bias('"', 100))
    assert answer.result is None or isinstance(answer.result, Person)
    assert isinstance(answer.error, bool)


def test_an_answer_comes_with_its_completion():
    mode = instructor.Mode.TOOLS
    person, completion = client(mode).create_with_completion(response_model=Person, **QUESTION)
    assert isinstance(person, Person)
    (call,) = completion.choices[0].message.tool_calls
    assert Person.model_validate_json(call.function.arguments).model_dump() == person.model_dump()
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    answer = client(mode, asynchronous=True).create(response_model=Person, **QUESTION)
    assert asyncio.run(answer).model_dump() == person.model_dump()


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_an_answer_grows_in_a_stream_to_a_whole_one(mode):
    parts = list(client(mode).create_partial(response_model=Tour, **QUESTION))
    assert len(parts) > 10
    assert Tour.model_validate(parts[-1].model_dump())
    assert not parts[0].others


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_people_come_one_by_one(mode):
    # The list ends only where it must.
    people = client(mode).create_iterable(response_model=Person, **QUESTION, logit_bias=bias("]", -100))
    first = list(itertools.islice(people, 2))
    assert [type(person) for person in first] == [Person, Person]
    people.close()


def test_calls_are_made_in_parallel():
    # instructor leaves the choice to the model; this one would never call, and then never end.
    asked = client(instructor.Mode.PARALLEL_TOOLS).create(
        response_model=Iterable[Boat | House],
        **QUESTION,
        logit_bias=bias("<|im_end|>", 100),
        extra_body={"tool_choice": "required"},
    )
    things = list(asked)
    assert things
    assert all(isinstance(thing, Boat | House) for thing in things)


@pytest.mark.parametrize("way", HELD)
def test_an_attempt_is_told_what_was_wrong_with_the_one_before(way):
    seen = []

    def third_time(name):
        seen.append(name)
        if len(seen) < 3:
            raise ValueError(f"attempt {len(seen)}: that name is taken")
        return name

    class Named(BaseModel):
        name: Annotated[str, Field(max_length=6), AfterValidator(third_time)]

    others = dict(HELD[way])
    asked = client(others.pop("mode"))
    sent = []
    asked.on("completion:kwargs", lambda *_, **keywords: sent.append(str(keywords["messages"])))
    assert asked.create(response_model=Named, **QUESTION, **others, max_retries=3).name == seen[2]
    assert len(sent) == 3
    for attempt, messages in enumerate(sent):
        assert (f"attempt {attempt}: that name is taken" in messages) == (attempt > 0)


def test_json_mode_gives_an_object_of_no_certain_form():
    class Anything(BaseModel, extra="allow"):
        pass

    # The object ends as soon as it may.
    short = {**QUESTION, "logit_bias": {**bias("{", 100), **bias("}", 100)}}
    asked = client(instructor.Mode.JSON)
    assert isinstance(asked.create(response_model=Anything, **short, max_retries=0), Anything)
    with pytest.raises(InstructorRetryException):
        asked.create(response_model=Village, **short, max_retries=1)


def test_an_answer_that_is_cut_is_told_as_such():
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        with pytest.raises((IncompleteOutputException, InstructorRetryException)):
            client(mode).create(response_model=Village, **{**QUESTION, "max_tokens": 3}, max_retries=0)


def test_a_fault_arrives_with_its_reason():
    with pytest.raises(InstructorRetryException, match="nobody"):
        client(instructor.Mode.TOOLS).create(response_model=Person, **{**QUESTION, "model": "nobody"}, max_retries=0)
