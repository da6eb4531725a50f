"""LangChain as its users write it."""

import math

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from shared import BASE_URL, ENCODER, ENCODER_WIDTH, WIDTH


def chat(**settings):
    defaults = {"model": "gpt-4o-mini", "base_url": BASE_URL, "max_tokens": 120, "temperature": 0, "max_retries": 0}
    return ChatOpenAI(**{**defaults, **settings})


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


@pytest.mark.parametrize(("model", "width"), [("text-embedding-3-small", WIDTH), (ENCODER, ENCODER_WIDTH)])
def test_tokens_of_openai_give_the_same_vectors_as_the_text(model, width):
    texts = ["On Friday the ferry is late.", "naïve 魚 🙂", "x"]
    tokens = OpenAIEmbeddings(model=model, base_url=BASE_URL)
    plain = OpenAIEmbeddings(model=model, base_url=BASE_URL, check_embedding_ctx_length=False)
    for one, other in zip(tokens.embed_documents(texts), plain.embed_documents(texts), strict=True):
        assert len(one) == width
        assert cosine(one, other) > 0.99999


def test_a_chat_is_invoked_and_streamed():
    whole = chat().invoke("Hello").content
    assert whole
    assert "".join(chunk.content for chunk in chat().stream("Hello")) == whole


def test_usage_comes_with_the_stream_where_asked():
    chunks = list(chat(stream_usage=True).stream("Hello"))
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(usage) == 1
    assert usage[0]["total_tokens"] == usage[0]["input_tokens"] + usage[0]["output_tokens"]


def test_log_probabilities_come_with_the_answer():
    answer = chat(max_tokens=8, logprobs=True, top_logprobs=2).invoke("Hello")
    content = answer.response_metadata["logprobs"]["content"]
    assert len(content) == answer.usage_metadata["output_tokens"]
    assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in content)


class Parcel(BaseModel):
    """A parcel."""

    town: str
    heavy: bool


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_of_the_type_asked_for(method):
    parcel = chat(max_tokens=None).with_structured_output(Parcel, method=method).invoke("A parcel to Brasmere.")
    assert isinstance(parcel, Parcel)


def test_json_mode_gives_an_object():
    answer = (
        chat(max_tokens=None, frequency_penalty=1)
        .with_structured_output(None, method="json_mode")
        .invoke("A parcel as JSON.")
    )
    assert isinstance(answer, dict)


@tool
def weigh(town: str, heavy: bool) -> str:
    """Weighs a parcel."""
    return f"{town} {heavy}"


def test_a_bound_tool_is_called_and_its_result_goes_back():
    bound = chat(max_tokens=None).bind_tools([weigh], tool_choice="weigh")
    question = HumanMessage("A parcel to Brasmere.")
    call = bound.invoke([question])
    (request,) = call.tool_calls
    assert request["name"] == "weigh"
    assert isinstance(request["args"]["heavy"], bool)
    answer = chat().bind_tools([weigh]).invoke([question, call, weigh.invoke(request)])
    assert answer.response_metadata["finish_reason"] in ("stop", "length", "tool_calls")


def test_a_streamed_tool_call_is_the_same_call():
    bound = chat(max_tokens=None).bind_tools([weigh], tool_choice="weigh")
    whole = bound.invoke("A parcel to Brasmere.").tool_calls
    parts = list(bound.stream("A parcel to Brasmere."))
    streamed = parts[0]
    for part in parts[1:]:
        streamed += part
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [
        (call["name"], call["args"]) for call in whole
    ]


def test_the_older_kind_of_model_completes_text():
    model = OpenAI(model="demo", base_url=BASE_URL, temperature=0, max_tokens=12)
    whole = model.invoke("On Friday")
    assert whole
    assert "".join(model.stream("On Friday")) == whole
    assert len(model.generate(["On Friday", "On Monday"]).generations) == 2


def responses(**settings):
    return chat(use_responses_api=True, **settings)


def test_responses_answer_like_chats():
    whole = responses().invoke("Hello")
    assert whole.text == chat().invoke("Hello").content
    assert whole.response_metadata["id"].startswith("resp_")
    assert whole.usage_metadata["total_tokens"] > 0
    streamed = None
    for chunk in responses().stream("Hello"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.text == whole.text
    assert streamed.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]


def test_a_response_goes_on_from_the_one_before():
    first = responses().invoke("My name is Ada.")
    question = HumanMessage("What is my name?")
    chained = responses(use_previous_response_id=True).invoke([HumanMessage("My name is Ada."), first, question])
    spelled = responses().invoke([HumanMessage("My name is Ada."), first, question])
    assert chained.text == spelled.text


def test_responses_call_tools_and_follow_schemas():
    bound = responses(max_tokens=None).bind_tools([weigh], tool_choice="weigh")
    question = HumanMessage("A parcel to Brasmere.")
    call = bound.invoke([question])
    (request,) = call.tool_calls
    assert (request["name"], type(request["args"]["heavy"])) == ("weigh", bool)
    answer = responses().bind_tools([weigh], tool_choice="none").invoke([question, call, weigh.invoke(request)])
    assert answer.text
    parcel = responses(max_tokens=None).with_structured_output(Parcel).invoke("A parcel to Brasmere.")
    assert isinstance(parcel, Parcel)
