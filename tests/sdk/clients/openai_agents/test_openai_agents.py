"""OpenAI's agents over chat completions: loops of tools, output types, events, handoffs. The demo model knows nothing of
calls and JSON: only what the server enforces makes these runs end as they must."""

import asyncio
import json
from enum import Enum
from typing import Annotated, Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    StopAtTools,
    function_tool,
    handoff,
    set_tracing_disabled,
)
from agents.exceptions import ModelBehaviorError
from pydantic import BaseModel, Field
from shared import BASE_URL, KEY

# Nothing is reported to OpenAI.
set_tracing_disabled(True)

QUESTION = "How is the weather on the island?"


class Unit(Enum):
    CELSIUS = "C"
    FAHRENHEIT = "F"


class Place(BaseModel):
    town: str = Field(max_length=8)
    zone: Literal["north", "south"]


class Sunny(BaseModel):
    kind: Literal["sunny"]
    degrees: int = Field(ge=-50, le=60)


class Rainy(BaseModel):
    kind: Literal["rainy"]
    litres: float = Field(ge=0, lt=1)
    until: Place | None


class Report(BaseModel):
    place: Place
    sky: Annotated[Sunny | Rainy, Field(discriminator="kind")]
    later: list[Sunny | Rainy] = Field(min_length=1, max_length=2)
    unit: Unit
    note: str | None = Field(max_length=6)


def settings(**others):
    defaults = {"temperature": 0, "max_tokens": 600, "parallel_tool_calls": False, "include_usage": True}
    return ModelSettings(**{**defaults, **others})


def agent(name="asked", **others):
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)
    model = OpenAIChatCompletionsModel(others.pop("model", "long"), openai_client=client)
    others.setdefault("model_settings", settings())
    return Agent(name=name, instructions="Be short.", model=model, **others)


def check_usage(usage, requests):
    assert usage.requests == requests
    assert usage.input_tokens > 0 < usage.output_tokens
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens


@pytest.fixture
def weather():
    """A tool with strict arguments, and a list of the calls that reached it."""
    calls = []

    @function_tool
    def weather(place: Place, unit: Unit, days: Literal[1, 7], around: list[Place] | None = None) -> str:
        """Tells the weather.

        Args:
            place: Where.
            unit: In which unit.
            days: How far ahead.
            around: What is near.
        """
        calls.append((place, unit, days))
        return json.dumps({"sky": "Grüße, sunny"}, ensure_ascii=False)

    assert weather.strict_json_schema
    return weather, calls


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_a_final_output_is_of_its_type(seed):
    drawn = settings(temperature=1, extra_args={"seed": seed}) if seed else settings()
    result = Runner.run_sync(agent(output_type=Report, model_settings=drawn), QUESTION)
    assert isinstance(result.final_output, Report)
    check_usage(result.context_wrapper.usage, 1)


def test_a_union_is_wrapped_and_unwrapped():
    result = Runner.run_sync(agent(output_type=Sunny | Rainy), QUESTION)
    assert isinstance(result.final_output, Sunny | Rainy)


def test_an_answer_that_is_cut_is_no_output():
    with pytest.raises(ModelBehaviorError):
        Runner.run_sync(agent(output_type=Report, model_settings=settings(max_tokens=4)), QUESTION)


@pytest.mark.parametrize("choice", ["required", "weather"])
def test_a_tool_is_called_and_its_result_goes_back(weather, choice):
    tool, calls = weather
    # After the first call the choice is the model's again, and it speaks.
    asked = agent(tools=[tool], model_settings=settings(tool_choice=choice, max_tokens=200))
    result = Runner.run_sync(asked, QUESTION)
    ((place, unit, days),) = calls
    assert isinstance(place, Place)
    assert isinstance(unit, Unit)
    assert days in (1, 7)
    assert [item.type for item in result.new_items] == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    assert result.final_output
    check_usage(result.context_wrapper.usage, 2)
    # The whole conversation goes on from there.
    history = [*result.to_input_list(), {"role": "user", "content": "And tomorrow?"}]
    assert Runner.run_sync(agent(tools=[tool], model_settings=settings(tool_choice="none")), history).final_output


def test_a_run_ends_with_the_result_of_a_tool(weather):
    tool, calls = weather
    ending = agent(
        tools=[tool],
        model_settings=settings(tool_choice="required"),
        tool_use_behavior=StopAtTools(stop_at_tool_names=["weather"]),
    )
    result = Runner.run_sync(ending, QUESTION)
    assert json.loads(result.final_output) == {"sky": "Grüße, sunny"}
    assert len(calls) == 1


def test_a_tool_that_fails_is_told_to_the_model():
    @function_tool
    def broken(times: Literal[1, 2]) -> str:
        """Breaks."""
        raise ValueError(f"broken {times} times")

    result = Runner.run_sync(agent(tools=[broken], model_settings=settings(tool_choice="required")), QUESTION)
    (output,) = [item for item in result.new_items if item.type == "tool_call_output_item"]
    assert output.output.startswith("An error occurred")
    assert result.final_output


def test_an_agent_with_tools_ends_in_its_output_type(weather):
    tool, calls = weather
    asked = agent(tools=[tool], output_type=Report, model_settings=settings(tool_choice="required"))
    result = Runner.run_sync(asked, QUESTION)
    assert len(calls) == 1
    assert isinstance(result.final_output, Report)


def test_the_events_of_a_stream_join_to_the_run(weather):
    tool, calls = weather

    async def run():
        asked = agent(tools=[tool], output_type=Report, model_settings=settings(tool_choice="required"))
        result = Runner.run_streamed(asked, QUESTION)
        return result, [event async for event in result.stream_events()]

    result, events = asyncio.run(run())
    raw = [event.data for event in events if event.type == "raw_response_event"]
    text = "".join(data.delta for data in raw if data.type == "response.output_text.delta")
    assert Report.model_validate_json(text) == result.final_output
    arguments = "".join(data.delta for data in raw if data.type == "response.function_call_arguments.delta")
    assert calls == [(Place(**json.loads(arguments)["place"]), calls[0][1], json.loads(arguments)["days"])]
    names = [event.name for event in events if event.type == "run_item_stream_event"]
    assert names == ["tool_called", "tool_output", "message_output_created"]
    check_usage(result.context_wrapper.usage, 2)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_hands_over_to_another(streamed):
    class Reason(BaseModel):
        why: Literal["rain", "sun"]
        where: Place | None

    reasons = []
    expert = agent("expert", output_type=Report)
    to_expert = handoff(expert, on_handoff=lambda _, reason: reasons.append(reason), input_type=Reason)
    first = agent("first", handoffs=[to_expert], model_settings=settings(tool_choice="required"))

    async def run():
        if not streamed:
            return await Runner.run(first, QUESTION)
        result = Runner.run_streamed(first, QUESTION)
        agents = [event.new_agent.name async for event in result.stream_events() if hasattr(event, "new_agent")]
        assert agents == ["first", "expert"]
        return result

    result = asyncio.run(run())
    assert result.last_agent is expert
    assert isinstance(result.final_output, Report)
    assert [type(reason) for reason in reasons] == [Reason]
    check_usage(result.context_wrapper.usage, 2)


def test_faults_arrive_as_their_classes():
    with pytest.raises(openai.NotFoundError):
        Runner.run_sync(agent(model="nobody"), QUESTION)
    with pytest.raises(openai.BadRequestError):
        Runner.run_sync(agent(model_settings=settings(top_p=9)), QUESTION)
