"""Clients that people use, each in its own pinned environment, against one server with OpenAI's model names as aliases.

The checks themselves stand in `clients/NAME`; they run with the client's own Python or with Node.js. A failing one shows
their whole report.
"""

import os
import shutil
import subprocess

import attunelib
import environments
import pytest

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


def check(command, surroundings, cwd=environments.CLIENTS, within=240):
    """Runs a client's checks; the report is shown where one of them fails."""
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=surroundings, timeout=within,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-20000:]}", pytrace=False)
    return done.stdout


def run_pytest(folder, surroundings, *arguments, **others):
    """Runs pytest inside a client's environment. The command `openai` is found there, too."""
    path = f"{folder / 'bin'}:{surroundings['PATH']}"
    command = [environments.python(folder), "-m", "pytest", "-c", "pytest.ini", "--rootdir=.", "--confcutdir=."]
    return check([*command, *arguments], {**surroundings, "PATH": path, **others})


@pytest.mark.parametrize(
    "name",
    [
        "openai_1_7", "openai_0_28", "llamaindex", "litellm", "openai_agents", "pydantic_ai", "instructor", "cohere",
        "haystack",
    ],
)
def test_the_checks_of_a_python_client_pass(surroundings, name):
    run_pytest(environments.prepare(name), surroundings, name)


def test_openai_0_28_passes_its_own_live_tests(surroundings):
    modules = ["openai.tests.test_endpoints", "openai.tests.asyncio.test_endpoints", "openai.tests.test_file_cli"]
    chosen = " and ".join(f"not {name}" for name in NOT_PROMISED)
    run_pytest(environments.prepare("openai_0_28"), surroundings, "-k", chosen, "--pyargs", *modules)


def test_langchain_and_its_standard_suites_pass(surroundings):
    # LangChain counts in OpenAI's tokens; litellm's package holds their table.
    (tables,) = environments.prepare("litellm").glob("lib/python3*/site-packages/litellm/litellm_core_utils/tokenizers")
    run_pytest(environments.prepare("langchain"), surroundings, "langchain", TIKTOKEN_CACHE_DIR=str(tables))


def test_the_evaluation_harness_finds_what_transformers_finds(surroundings, tmp_path):
    # The harness keeps its copies of the questions beneath HF_HOME.
    run_pytest(environments.prepare("lm_eval"), surroundings, "lm_eval", HF_HOME=str(tmp_path))


@pytest.mark.parametrize("name", ["node", "vercel_ai"])
def test_the_checks_of_a_client_for_node_pass(surroundings, name):
    folder = environments.prepare(name)
    # A module finds its packages beside itself.
    for script in (environments.CLIENTS / name).glob("*.mjs"):
        shutil.copy(script, folder)
    check(["node", "--test", "--test-reporter=spec"], surroundings, cwd=folder)
