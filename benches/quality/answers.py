"""Asks models of a running server for the sections of packages, and counts the right answers."""

import concurrent.futures
import json

import sections

AT_ONCE = 8
# Longer than any section's name: an answer that is cut here is none.
TOKENS = 8
SCHEMA = {
    "type": "object", "properties": {"section": {"type": "string", "enum": list(sections.SECTIONS)}},
    "required": ["section"], "additionalProperties": False,
}  # fmt: skip
CHOICES = f" It is one of: {', '.join(sections.SECTIONS)}."


def as_in_examples(client, model, chat):
    """The answer to a chat that looks like the training's."""
    return client.chat(model, chat[:-1], max_tokens=TOKENS)


def continued(client, model, pair):
    """The continuation of a prompt that looks like the training's."""
    body = {"model": model, "prompt": pair["prompt"], "max_tokens": TOKENS, "temperature": 0}
    return client.post("/v1/completions", body)["choices"][0]["text"]


def by_schema(client, model, chat):
    """The section in an answer that is held to a JSON schema of all sections, which the question names as well."""
    question, description, _ = chat
    question = {**question, "content": question["content"] + CHOICES}
    form = {"type": "json_schema", "json_schema": {"name": "section", "strict": True, "schema": SCHEMA}}
    answer = client.chat(model, [question, description], max_tokens=64, response_format=form)
    return json.loads(answer)["section"]


def asked(client, model, examples, ask=as_in_examples):
    """The answers of a model, in the order of the examples."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda example: ask(client, model, example), examples))


def wanted(example):
    """The section of an example."""
    return example["completion"].strip() if "completion" in example else example[-1]["content"]


def right(answers, examples):
    """How many answers are the section and nothing else."""
    return sum(answer.strip() == wanted(example) for answer, example in zip(answers, examples, strict=True))
