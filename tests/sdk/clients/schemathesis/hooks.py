"""What schemathesis must know beside the document: an error is an object with four keys, and which names exist here.

Read by `st` from SCHEMATHESIS_HOOKS; `test_fuzz.py` sets the names in the environment."""

import os

import schemathesis

KEYS = {"message", "type", "param", "code"}
# A request may ask for long answers; that they come is for other tests.
MOST_TOKENS, MOST_ANSWERS = 8, 2


@schemathesis.check
def error_object(ctx, response, case):
    """Every answer with a status of 400 and above holds OpenAI's error object."""
    if response.status_code < 400:
        return
    body = response.json()
    assert list(body) == ["error"], f"the body has the keys {list(body)}"
    error = body["error"]
    assert isinstance(error, dict) and set(error) == KEYS, f"`error` is {error}"
    assert isinstance(error["message"], str) and error["message"], "`message` is empty"
    assert isinstance(error["type"], str) and error["type"], "`type` is empty"
    for key in ("param", "code"):
        assert error[key] is None or isinstance(error[key], str), f"`{key}` is {error[key]!r}"


@schemathesis.hook
def map_body(ctx, body):
    """Random names find nothing: three of four bodies name the model and the file that are there."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if body.get("stream") is True:
        # Streams are read to the last byte in `test_transport.py`; their document, as OpenAI's, tells what an event holds,
        # which schemathesis takes for the event itself.
        body["stream"] = False
    known = {"model": "demo", "training_file": os.environ["ATTUNE_FILE"]}
    for field, name in known.items():
        if isinstance(body.get(field), str) and len(body[field]) % 4:
            body[field] = name
    if isinstance(body.get("validation_file"), str):
        body["validation_file"] = None
    limits = {
        "max_tokens": MOST_TOKENS,
        "max_completion_tokens": MOST_TOKENS,
        "max_output_tokens": MOST_TOKENS,
        "n": MOST_ANSWERS,
        "best_of": MOST_ANSWERS,
    }
    for field, most in limits.items():
        if isinstance(body.get(field), int) and body[field] > most and body[field] % 5:
            body[field] = most
    if ctx.operation.path.endswith("/completions") and body.get("max_tokens") is None:
        body["max_tokens"] = MOST_TOKENS
    if ctx.operation.path.endswith(("/responses", "/compact")) and body.get("max_output_tokens") is None:
        body["max_output_tokens"] = MOST_TOKENS
    return body


@schemathesis.hook
def map_query(ctx, query):
    """No streams, see above."""
    return {name: value for name, value in (query or {}).items() if name != "stream"}


@schemathesis.hook
def map_path_parameters(ctx, parameters):
    """So do three of four paths."""
    known = {
        "model": "demo",
        "engine": "demo",
        "request": "completions",
        "fine_tuned_model_checkpoint": "demo",
        "file_id": os.environ["ATTUNE_FILE"],
        "fine_tuning_job_id": os.environ["ATTUNE_JOB"],
        "fine_tune_id": os.environ["ATTUNE_FINE_TUNE"],
    }
    parameters = dict(parameters or {})
    for name, value in known.items():
        if isinstance(parameters.get(name), str) and len(parameters[name]) % 4:
            parameters[name] = value
    return parameters
