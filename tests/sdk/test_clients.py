"""Clients that people use, each in its own pinned environment, against one server with OpenAI's model names as aliases.

The checks themselves stand in `clients/NAME`; they run with the client's own Python or with Node.js. A failing one shows
their whole report. With `--engine mistralrs` those that need what a model of the second engine cannot do are to fail.
"""

import os
import re
import shutil
import subprocess

import attunelib
import environments
import pytest
import second_engine

pytestmark = pytest.mark.timeout(300)

# Tests of openai 0.28.1's own that ask for what OpenAI's servers only happened to do.
NOT_PROMISED = (
    # A file is `processed` at once, which OpenAI's API answers today, too.
    "test_file_upload",
)


@pytest.fixture(scope="session")
def surroundings(aliased):
    """What the checks find in their environment: the address under every name that a client reads, and no proxy, no
    cache and no telemetry of the caller's."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "ATTUNE_URL": aliased.url,
        "ATTUNE_DEMO": str(attunelib.DEMO),
        "OPENAI_BASE_URL": aliased.url + "/v1",
        "OPENAI_API_BASE": aliased.url + "/v1",
        "OPENAI_API_KEY": "sk-conformance-0123456789",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        # Only the tables inside the packages: no download of prices and tokens, no reports to anyone.
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LANGSMITH_TRACING": "false",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def beyond(request):
    """A function that returns a client's checks of what the models cannot do on their engine, by what they need."""
    is_moved = request.config.getoption("--engine") == "mistralrs"
    return second_engine.checks_of if is_moved else lambda _: {}


def run(command, surroundings, cwd=environments.CLIENTS, within=240):
    """Runs a client's checks; returns whether all passed, and their report."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=surroundings, timeout=within,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode == 0, done.stdout


def check(command, surroundings, **others):
    """Runs a client's checks and returns their report, which is shown where one of them fails."""
    passed, report = run(command, surroundings, **others)
    if not passed:
        pytest.fail(f"{' '.join(map(str, command))}\n{report[-20000:]}", pytrace=False)
    return report


def check_refused(command, surroundings, need, passes, **others):
    """Runs checks of what the models cannot do: all fail, with the answer of that; `passes` is what a report has of one that
    does not."""
    passed, report = run(command, surroundings, **others)
    if passed or re.search(passes, report) or second_engine.CANNOT[need].message not in report:
        pytest.fail(f"each of these is to be refused: {need}\n{report[-20000:]}", pytrace=False)


def run_pytest(folder, surroundings, beyond, *arguments, **others):
    """Runs pytest inside a client's environment. The command `openai` is found there, too."""
    surroundings = {**surroundings, "PATH": f"{folder / 'bin'}:{surroundings['PATH']}", **others}
    command = [environments.python(folder), "-m", "pytest", "-c", "pytest.ini", "--rootdir=.", "--confcutdir=."]
    left_out = [f"--deselect={check}" for checks in beyond.values() for check in checks]
    check([*command, *arguments, *left_out], surroundings)
    for need, checks in beyond.items():
        check_refused([*command, *checks], surroundings, need, r"\d passed|not found: ")


@pytest.mark.parametrize(
    "name",
    [
        "openai_1_7", "openai_0_28", "llamaindex", "litellm", "openai_agents", "pydantic_ai", "instructor", "cohere",
        "haystack",
    ],
)
def test_the_checks_of_a_python_client_pass(surroundings, beyond, name):
    run_pytest(environments.prepare(name), surroundings, beyond(name), name)


def test_openai_0_28_passes_its_own_live_tests(surroundings):
    modules = ["openai.tests.test_endpoints", "openai.tests.asyncio.test_endpoints", "openai.tests.test_file_cli"]
    chosen = " and ".join(f"not {name}" for name in NOT_PROMISED)
    run_pytest(environments.prepare("openai_0_28"), surroundings, {}, "-k", chosen, "--pyargs", *modules)


def test_langchain_and_its_standard_suites_pass(surroundings, beyond):
    # LangChain counts in OpenAI's tokens; litellm's package holds their table.
    (tables,) = environments.prepare("litellm").glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers")
    run_pytest(
        environments.prepare("langchain"), surroundings, beyond("langchain"), "langchain", TIKTOKEN_CACHE_DIR=str(tables)
    )


def test_the_evaluation_harness_finds_what_transformers_finds(surroundings, tmp_path):
    # The harness keeps its copies of the questions beneath HF_HOME.
    run_pytest(environments.prepare("lm_eval"), surroundings, {}, "lm_eval", HF_HOME=str(tmp_path))


@pytest.mark.parametrize("name", ["node", "vercel_ai"])
def test_the_checks_of_a_client_for_node_pass(surroundings, beyond, name):
    folder = environments.prepare(name)
    # A module finds its packages beside itself.
    for script in (environments.CLIENTS / name).glob("*.mjs"):
        shutil.copy(script, folder)
    command = ["node", "--test", "--test-reporter=spec"]
    names = {need: [check.split("::")[1] for check in checks] for need, checks in beyond(name).items()}
    left_out = "|".join(re.escape(check) for checks in names.values() for check in checks)
    # What a pattern says of the root, which has this name, is said of all tests.
    check([*command, *([f"--test-name-pattern=^(?!(<root>|{left_out})?$)"] if left_out else [])], surroundings, cwd=folder)
    for need, checks in names.items():
        chosen = "|".join(map(re.escape, checks))
        check_refused([*command, f"--test-name-pattern=^({chosen})$"], surroundings, need, f"✔ ({chosen}) ", cwd=folder)
