"""OpenAI's agents over responses, which is what they use unless they are told otherwise."""

import asyncio
from typing import Literal

import openai
import pytest
from agents import Agent, ModelSettings, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel, Field
from shared import BASE_URL, KEY

set_tracing_disabled(True)

QUESTION = "How is the weather on the island?"


class Town(BaseModel):
    name: str = Field(max_length=8)
    side: Literal["north", "south"]


def agent(max_tokens=600, tool_choice=None, **others):
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)
    settings = ModelSettings(
        temperature=0, max_tokens=max_tokens, tool_choice=tool_choice, parallel_tool_calls=False if tool_choice else None
    )
    model = OpenAIResponsesModel("long", openai_client=client)
    return Agent(name="asked", instructions="Be short.", model=model, model_settings=settings, **others)


def test_a_run_ends_with_a_text_and_its_usage():
    result = Runner.run_sync(agent(max_tokens=30), QUESTION)
    assert result.final_output
    usage = result.context_wrapper.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0


def test_a_final_output_is_of_its_type():
    assert isinstance(Runner.run_sync(agent(output_type=Town), QUESTION).final_output, Town)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(streamed):
    calls = []

    @function_tool
    def weather(town: Town, days: Literal[1, 7]) -> str:
        """Tells the weather."""
        calls.append((town, days))
        return "Sunny."

    asked = agent(tools=[weather], tool_choice="required", max_tokens=200)

    async def run():
        result = Runner.run_streamed(asked, QUESTION)
        async for _ in result.stream_events():
            pass
        return result

    result = asyncio.run(run()) if streamed else Runner.run_sync(asked, QUESTION)
    ((town, days),) = calls
    assert isinstance(town, Town) and days in (1, 7)
    assert [item.type for item in result.new_items] == ["tool_call_item", "tool_call_output_item", "message_output_item"]
    # The whole conversation goes on from there, and so does one that the server keeps.
    history = [*result.to_input_list(), {"role": "user", "content": "And tomorrow?"}]
    spelled = Runner.run_sync(agent(max_tokens=30), history).final_output
    kept = Runner.run_sync(agent(max_tokens=30), "And tomorrow?", previous_response_id=result.last_response_id)
    assert spelled == kept.final_output
