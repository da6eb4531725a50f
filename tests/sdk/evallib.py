"""What the tests of evals have in common."""

from conftest import wait_for

HAS_KEY = {
    "type": "string_check",
    "name": "has the key",
    "input": "{{sample.output_text}}",
    "reference": "{{item.key}}",
    "operation": "like",
}


def finished(client, run, within=120):
    """The run once it has ended."""

    def ended():
        read = client.evals.runs.retrieve(run.id, eval_id=run.eval_id)
        return read if read.status in ("completed", "failed", "canceled") else None

    return wait_for(ended, f"the end of {run.id}", within)


def items(client, run, **query):
    return list(client.evals.runs.output_items.list(run.id, eval_id=run.eval_id, **query))


def asked(questions, **fields):
    """A data source that asks the demo model questions about its world."""
    lines = [{"item": {"question": q["messages"][0]["content"], **q}} for q in questions]
    return {
        "type": "completions",
        "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
        "sampling_params": {"temperature": 0, "max_completion_tokens": 40},
        "source": {"type": "file_content", "content": lines},
        **fields,
    }
