"""OpenAI's agents over responses, which is what they use unless they are told otherwise."""

import asyncio
from typing import Literal

import openai
import pytest
from agents import (
    Agent,
    ModelSettings,
    OpenAIConversationsSession,
    OpenAIResponsesCompactionSession,
    OpenAIResponsesModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
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


def client():
    return openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0, timeout=60)


def test_a_session_keeps_its_conversation_on_the_server():
    async def run():
        session = OpenAIConversationsSession(openai_client=client())
        first = await Runner.run(agent(max_tokens=30), "My name is Ada.", session=session)
        second = await Runner.run(agent(max_tokens=30), "What is my name?", session=session)
        items = await session.get_items()
        # Another process goes on with it by its id.
        other = OpenAIConversationsSession(conversation_id=session.session_id, openai_client=client())
        assert await other.get_items() == items
        assert await other.get_items(limit=2) == items[-2:]
        spelled = [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": first.final_output},
            {"role": "user", "content": "What is my name?"},
        ]
        alone = await Runner.run(agent(max_tokens=30), spelled)
        assert alone.final_output == second.final_output
        popped = await other.pop_item()
        assert popped == items[-1]
        assert await session.get_items() == items[:-1]
        gone = session.session_id
        await session.clear_session()
        assert await session.get_items() == []
        with pytest.raises(openai.NotFoundError):
            await client().conversations.retrieve(gone)
        return items

    items = asyncio.run(run())
    assert [item["role"] for item in items] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_session_keeps_calls_and_their_results(streamed):
    @function_tool
    def weather(days: Literal[1, 7]) -> str:
        """Tells the weather."""
        return "Sunny."

    async def run():
        session = OpenAIConversationsSession(openai_client=client())
        asked = agent(tools=[weather], tool_choice="required", max_tokens=200)
        if streamed:
            result = Runner.run_streamed(asked, QUESTION, session=session)
            async for _ in result.stream_events():
                pass
        else:
            await Runner.run(asked, QUESTION, session=session)
        items = await session.get_items()
        await Runner.run(agent(max_tokens=30), "And tomorrow?", session=session)
        return items, await session.get_items()

    first, second = asyncio.run(run())
    assert [item["type"] for item in first] == ["message", "function_call", "function_call_output", "message"]
    assert second[:4] == first
    assert [item["role"] for item in second[4:]] == ["user", "assistant"]


def test_a_session_of_more_items_than_one_request_takes():
    async def run():
        session = OpenAIConversationsSession(openai_client=client())
        said = [{"role": ["user", "assistant"][at % 2], "content": f"Line {at}"} for at in range(50)]
        await session.add_items(said)
        return [item["content"][0]["text"] for item in await session.get_items()]

    assert asyncio.run(run()) == [f"Line {at}" for at in range(50)]


def test_a_run_goes_on_from_a_conversation_of_the_server():
    async def run():
        conversation = (await client().conversations.create()).id
        first = await Runner.run(agent(max_tokens=30), "My name is Ada.", conversation_id=conversation)
        second = await Runner.run(agent(max_tokens=30), "What is my name?", conversation_id=conversation)
        listed = client().conversations.items.list(conversation, order="asc")
        return first, second, [item.content[0].text async for item in listed]

    first, second, texts = asyncio.run(run())
    assert texts == ["My name is Ada.", first.final_output, "What is my name?", second.final_output]


def test_a_session_makes_its_history_short():
    async def run():
        inner = SQLiteSession("short")
        session = OpenAIResponsesCompactionSession(
            "short", inner, client=client(), model="gpt-4o-mini", should_trigger_compaction=lambda _: False
        )
        for said in ("My name is Ada.", "I live by the sea."):
            await Runner.run(agent(max_tokens=30), said, session=session)
        before = await session.get_items()
        await session.run_compaction({"force": True, "compaction_mode": "input"})
        after = await session.get_items()
        result = await Runner.run(agent(max_tokens=30), "Where do I live?", session=session)
        return before, after, result.final_output

    before, after, answer = asyncio.run(run())
    assert len(before) == 4
    assert [item.get("type", "message") for item in after] == ["message", "message", "compaction"]
    assert answer
