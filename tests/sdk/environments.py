"""The environments of the clients: each has a folder under `clients/` with what it needs, pinned, and its own checks.

A client's environment is made under cargo's target folder on first use, and made anew when its `requirements.txt` or
`package-lock.json` changes. Used by `test_clients.py` and its neighbours; `make test-sdk` prepares all of them at once, and
fetches the real models:

    python tests/sdk/environments.py [NAME…]
"""

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import real_models  # noqa: E402

HERE = Path(__file__).resolve().parent
CLIENTS = HERE / "clients"
ROOT = HERE.parents[1]
# How long a single environment may take to download.
PATIENCE = 900


def names():
    """Every client that has an environment."""
    return sorted(folder.name for folder in CLIENTS.iterdir() if requirements(folder.name).is_file())


def requirements(name):
    """The file that pins what the client needs."""
    lock = CLIENTS / name / "package-lock.json"
    return lock if lock.is_file() else CLIENTS / name / "requirements.txt"


def is_node(name):
    return requirements(name).name == "package-lock.json"


def base():
    """The folder that holds the environments; it outlives a checkout where cargo's target folder does."""
    target = subprocess.run([ROOT / "tools" / "target-dir"], capture_output=True, text=True, check=True)
    return Path(target.stdout.strip()) / "sdk-clients"


def prepare(name):
    """The folder of the client's environment, made where it is missing or out of date."""
    folder = base() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    version = "node" if is_node(name) else sys.version
    wanted = hashlib.sha256(version.encode() + requirements(name).read_bytes()).hexdigest()
    made = folder / ".made-from"
    with locked(folder.with_suffix(".lock")):
        if not (made.is_file() and made.read_text() == wanted):
            shutil.rmtree(folder, ignore_errors=True)
            print(f"preparing the client {name}", file=sys.stderr, flush=True)
            (make_node if is_node(name) else make_python)(name, folder)
            made.write_text(wanted)
    return folder


@contextlib.contextmanager
def locked(path):
    """Keeps two test runs from making one environment at the same time."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_python(name, folder):
    if sys.version_info < (3, 11):
        raise RuntimeError(f"The clients' environments need Python 3.11 or newer; this is {sys.version.split()[0]}.")
    run(sys.executable, "-m", "venv", folder)
    run(
        python(folder),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--disable-pip-version-check",
        "-r",
        requirements(name),
    )


def make_node(name, folder):
    folder.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(CLIENTS / name / file, folder)
    run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error", cwd=folder)


def python(folder):
    return folder / "bin" / "python"


def run(*command, cwd=None):
    command = [str(part) for part in command]
    done = subprocess.run(
        command, cwd=cwd, timeout=PATIENCE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout[-4000:]}")


if __name__ == "__main__":
    # Two at a time: one downloads while another unpacks.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(prepare, sys.argv[1:] or names()))
    if not sys.argv[1:]:
        for model in (*real_models.ALL, real_models.MINILM):
            model.fetch()
