"""schemathesis over the whole document: whatever a client sends, the answer has the type and the shape that the document
says, no answer is a 5xx, and every refusal is an error object."""

import os
import re

import attunelib
import environments
import pytest
from conftest import as_prompts, create_job, sdk, upload
from test_clients import check

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,error_object"
# Requests per route in the random phase; the phase of edge cases sends as many as the document has edges.
EXAMPLES = 40
SECONDS = 400


@pytest.fixture(scope="module")
def idle(start_server):
    """A server that trains nothing: jobs that the fuzzer makes stay in the queue."""
    server = start_server("--no-worker")
    yield server
    server.stop()


@pytest.mark.timeout(SECONDS + 90)
def test_no_request_breaks_the_server_or_its_own_description(idle, tickets, request):
    job, fine_tune = "ftjob-none", "ft-none"
    with sdk(idle) as client:
        file = upload(client, tickets[:12])
        # The second engine does not train.
        if request.config.getoption("--engine") == "attune":
            job = create_job(client, file).id
            body = {"model": "demo", "training_file": upload(client, as_prompts(tickets[:12]))}
            fine_tune = client.post("/fine_tunes", body=body, cast_to=object)["id"]
    folder = environments.prepare("schemathesis")
    here = environments.CLIENTS / "schemathesis"
    surroundings = {
        "PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(here), "PYTHONUTF8": "1",
        "SCHEMATHESIS_HOOKS": "hooks", "ATTUNE_FILE": file, "ATTUNE_JOB": job, "ATTUNE_FINE_TUNE": fine_tune,
    }  # fmt: skip
    command = [
        folder / "bin" / "st", "run", f"{idle.url}/openapi.json", "--url", idle.url, "--phases", "examples,coverage,fuzzing",
        "--max-examples", EXAMPLES, "--seed", 20, "--checks", CHECKS, "--continue-on-failure", "--request-timeout", 30,
        "--no-color", "--generation-database", "none", "--suppress-health-check", "all",
        # Its answer is Prometheus' text, and it is the only one without a body of JSON.
        "--exclude-path", "/metrics",
    ]  # fmt: skip
    report = check(command, surroundings, cwd=folder, within=SECONDS)
    cases = re.search(r"(\d+) generated, (\d+) passed", report)
    assert cases and int(cases[1]) >= 1000 and cases[1] == cases[2], report
    assert attunelib.Client(idle.url).get("/v1/models")["data"], "the server still answers"
