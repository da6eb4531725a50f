"""`attune pull` against a hub that fails in every way that a hub, a network or a disk can."""

import json
import os
import resource
import signal
import struct
import subprocess
import time
from pathlib import Path

import attunelib
import environments
import pytest
from conftest import wait_for
from hub import Hub

NAME = "acme/tiny"
TOKEN = "hf_loopbackonly0123456789"
SIZE = 1_000_000
# The demo model's shape, without weights that anyone would compute with.
CONFIG = (attunelib.DEMO / "config.json").read_bytes()


def weights(size=SIZE):
    """A safetensors file of one tensor."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(size)


def files():
    return {
        "README.md": b"# A model\n",
        "config.json": CONFIG,
        "model.safetensors": weights(),
        "pytorch_model.bin": b"a pickle",
        "tokenizer.json": b'{"version": "1.0"}',
        "tokenizer_config.json": b"{}",
    }


@pytest.fixture
def hub():
    hub = Hub()
    hub.add(NAME, files())
    yield hub
    hub.close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "hf"


def surroundings(hub, home, settings=None):
    """The caller's environment without its own hub and proxies."""
    foreign = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    kept = {name: value for name, value in attunelib.environment().items() if not name.upper().startswith(foreign)}
    return {**kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(home), **(settings or {})}


def start(binary, hub, home, *arguments, settings=None, **options):
    return subprocess.Popen(
        [str(binary), "pull", *(arguments or [NAME])], env=surroundings(hub, home, settings),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def finish(process, within=60):
    """Waits for the end; returns the status, the path that was printed, and what was said."""
    out, said = process.communicate(timeout=within)
    assert "panicked" not in said
    assert TOKEN not in out + said and "signature" not in out + said
    return process.returncode, out.strip(), said


def pull(binary, hub, home, *arguments, **options):
    return finish(start(binary, hub, home, *arguments, **options))


def pulled(binary, hub, home, *arguments, **options):
    """Pulls, which must succeed; returns the model's folder."""
    status, out, said = pull(binary, hub, home, *arguments, **options)
    assert status == 0, said
    return Path(out)


def refused(binary, hub, home, *arguments, **options):
    """Pulls, which must fail; returns the message on one line."""
    status, out, said = pull(binary, hub, home, *arguments, **options)
    assert status == 1 and not out, (status, out, said)
    assert not snapshots(home), "what is not complete must not look like a model"
    return " ".join(said.split())


def cache(home, name=NAME):
    return home / "hub" / f"models--{name.replace('/', '--')}"


def snapshots(home):
    return sorted((cache(home) / "snapshots").glob("*"))


def part(home, file):
    return cache(home) / "blobs" / f"{file.etag}.attune.incomplete"


def check(folder, hub, wanted=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")):
    """Every wanted file is there with its bytes, and nothing else."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(wanted)
    commit = hub.repositories[NAME].commits[folder.name]
    for name in wanted:
        assert (folder / name).read_bytes() == commit[name].content, name


def python(*arguments, hub, home, status=0):
    """Runs Hugging Face's own library on the cache; returns what it prints."""
    script = environments.CLIENTS / "hf_cache" / "cache.py"
    command = [environments.python(environments.prepare("hf_cache")), script, *arguments]
    settings = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(part) for part in command], env=surroundings(hub, home, settings), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done.stdout.strip()


def test_a_model_is_fetched_into_the_layout_that_python_reads(binary, hub, home):
    hub.page_size = 2
    folder = pulled(binary, hub, home)
    check(folder, hub)
    repository = hub.repositories[NAME]
    commit = repository.branches["main"]
    assert folder == cache(home) / "snapshots" / commit
    assert (cache(home) / "refs" / "main").read_text() == commit
    for path in folder.iterdir():
        assert os.readlink(path) == f"../../blobs/{repository.file(path.name).etag}"
    assert not hub.asked("README.md") and not hub.asked("pytorch_model.bin")
    assert python("read", NAME, hub=hub, home=home) == str(folder)
    assert python("scan", hub=hub, home=home) == ""
    asked = len(hub.requests)
    assert pulled(binary, hub, home) == folder
    assert len(hub.requests) == asked + 1, "the branch is asked for, and nothing is fetched again"


@pytest.mark.timeout(200)
def test_what_python_fetched_is_read_and_completed(binary, hub, home):
    folder = Path(python("fetch", NAME, hub=hub, home=home))
    asked = len(hub.requests)
    assert pulled(binary, hub, home, settings={"HF_HUB_OFFLINE": "1"}) == folder
    assert len(hub.requests) == asked
    # As a process leaves it that was killed: the list of the files says so.
    (folder / "tokenizer_config.json").unlink()
    status, _, said = pull(binary, hub, home, settings={"HF_HUB_OFFLINE": "1"})
    assert status == 1 and f"run `attune pull {NAME}` without it" in said
    assert pulled(binary, hub, home) == folder
    assert (folder / "tokenizer_config.json").read_bytes() == b"{}"
    assert python("read", NAME, hub=hub, home=home) == str(folder)


def test_a_pull_that_is_killed_at_40_percent_goes_on_to_the_byte(binary, hub, home):
    file = hub.repositories[NAME].file("model.safetensors")
    size = len(file.content)
    file.hold_after = size * 2 // 5
    process = start(binary, hub, home)
    wait_for(lambda: part(home, file).exists() and part(home, file).stat().st_size == file.hold_after, "40 %")
    process.kill()
    process.communicate()
    assert not snapshots(home) and not (cache(home) / "refs").exists()
    there = part(home, file).stat().st_size
    file.hold_after, before = None, len(hub.asked(file.sha256))
    file.released.set()
    check(pulled(binary, hub, home), hub)
    (resumed,) = hub.asked(file.sha256)[before:]
    assert resumed.range == f"bytes={there}-"
    assert resumed.sent == size - there <= size * 3 / 5
    assert not part(home, file).exists()


def test_a_kill_between_any_two_requests_leaves_nothing_that_looks_complete(binary, hub, home):
    pulled(binary, hub, home)
    total, at = len(hub.requests), 0
    assert total >= 6
    for number in range(1, total + 1):
        there = home.with_name(f"killed-{number}")
        hub.requests.clear()
        process = None

        def stop(count, number=number):
            if count == number:
                wait_for(lambda: process, "the process")
                process.kill()
                process.wait()

        hub.before = stop
        process = start(binary, hub, there)
        process.communicate(timeout=60)
        hub.before = None
        assert process.returncode == -signal.SIGKILL
        assert not snapshots(there) and not (cache(there) / "refs").exists(), number
        status, _, said = pull(binary, hub, there, settings={"HF_HUB_OFFLINE": "1"})
        assert status == 1 and "not complete" in said
        check(pulled(binary, hub, there), hub)
        at = number
    assert at == total


def test_a_kill_at_the_very_end_leaves_a_whole_model_or_none(binary, hub, home):
    file = hub.repositories[NAME].file("model.safetensors")
    file.hold_after = len(file.content) - 1
    for round_ in range(24):
        there = home.with_name(f"end-{round_}")
        file.released.clear()
        process = start(binary, hub, there)
        wait_for(lambda there=there: part(there, file).exists() and part(there, file).stat().st_size > SIZE, "the end")
        file.released.set()
        # From before the last byte to after the process's end.
        time.sleep(round_ * 0.001)
        process.kill()
        process.communicate()
        for folder in snapshots(there):
            check(folder, hub)
        assert snapshots(there) or not (cache(there) / "refs").exists()
        check(pulled(binary, hub, there), hub)


def set_statuses(*statuses):
    def fault(file):
        file.statuses = [(status, {"Retry-After": "0"}) for status in statuses]

    return fault


def set_fields(**fields):
    def fault(file):
        for name, value in fields.items():
            # A list is used up.
            setattr(file, name, list(value) if isinstance(value, list) else value)

    return fault


@pytest.mark.parametrize(
    ("fault", "sent"),
    [
        (set_statuses(429), SIZE),
        (set_statuses(503, 500, 502, 504), SIZE),
        # Each cut is gone on from.
        (set_fields(cuts=[1, 100_000, 50_000, 200_000, 7, 1_000]), SIZE),
        (set_fields(cuts=[300_000], ignores_ranges=True), SIZE + 300_000),
        (set_fields(cuts=[300_000], refuses_ranges=True), SIZE + 300_000),
        (set_fields(pace=0.001), SIZE),
    ],
    ids=["429", "5xx", "cuts", "range ignored", "416", "slow"],
)
def test_a_fault_that_passes_is_waited_out(binary, hub, home, fault, sent):
    file = hub.repositories[NAME].file("model.safetensors")
    overhead = len(file.content) - SIZE
    fault(file)
    check(pulled(binary, hub, home), hub)
    assert hub.sent(file) == sent + overhead


def test_faults_of_the_lists_are_waited_out_too_and_given_up_in_the_end(binary, hub, home):
    repository = hub.repositories[NAME]
    repository.refusal = (503, None, "maintenance")
    said = refused(binary, hub, home)
    assert "cannot be reached: it answers 503: maintenance" in said
    assert len(hub.requests) == 5
    hub.before = lambda number: setattr(repository, "refusal", None) if number == 7 else None
    check(pulled(binary, hub, home), hub)


@pytest.mark.parametrize("left_over", [0, 400_000])
def test_a_wrong_byte_is_caught(binary, hub, home, left_over):
    file = hub.repositories[NAME].file("model.safetensors")
    file.wrong_bytes = 100
    if left_over:
        file.cuts = [left_over] * 5 + [len(file.content)] * 9
    said = refused(binary, hub, home)
    assert "model.safetensors came with wrong bytes: checksum" in said
    assert not part(home, file).exists() and not (cache(home) / "blobs" / file.etag).exists()
    file.wrong_bytes, file.cuts = 0, []
    check(pulled(binary, hub, home), hub)


def test_what_an_earlier_process_left_damaged_is_fetched_anew_once(binary, hub, home):
    file = hub.repositories[NAME].file("model.safetensors")
    part(home, file).parent.mkdir(parents=True)
    part(home, file).write_bytes(b"\0" * 1000)
    check(pulled(binary, hub, home), hub)
    assert hub.sent(file) == 2 * len(file.content) - 1000


def test_verify_finds_right_lengths_with_wrong_bytes(binary, hub, home):
    folder = pulled(binary, hub, home)
    blob = (folder / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    pulled(binary, hub, home)
    assert blob.read_bytes() != content, "by default only lengths are compared"
    check(pulled(binary, hub, home, NAME, "--verify"), hub)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"is_page": True}, "a web page came instead of"),
        ({"more": 5}, "bytes are announced instead of"),
        ({"statuses": [(418, {})]}, "status 418"),
        ({"statuses": [(404, {"X-Error-Code": "EntryNotFound"})]}, "has no file"),
        ({"statuses": [(503, {})] * 9}, "it answers 503"),
        ({"statuses": [(429, {"Retry-After": "3000"})]}, "allows no more requests at the moment (it asks to wait 3000 s)"),
        ({"cuts": [0] * 9}, "cannot be reached"),
    ],
    ids=["page", "length", "odd", "gone", "503", "429", "cuts"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors"])
def test_a_fault_that_stays_ends_the_pull_with_what_happened(binary, hub, home, name, fields, says):
    set_fields(**fields)(hub.repositories[NAME].file(name))
    assert says in refused(binary, hub, home)


@pytest.mark.parametrize(
    ("fields", "name", "token", "says"),
    [
        ({"file_refusal": (401, "GatedRepo", "")}, NAME, None, "gated: accept the terms at {url}/acme/tiny, then set HF_TOKEN"),
        ({"file_refusal": (403, "GatedRepo", "")}, NAME, TOKEN, "has not been let in. Accept the terms at {url}/acme/tiny"),
        ({"refusal": (401, "RepoNotFound", "")}, NAME, None, "or it is private. Check the name; for a private one set HF_TOKEN"),
        ({"refusal": (404, "RepoNotFound", "")}, NAME, TOKEN, "the token's account may read it"),
        ({}, "acme/none", None, "there is no model acme/none at {url}"),
        ({}, NAME, "hf_expired", "does not take the token that was sent, and shows acme/tiny without one"),
        ({}, "acme/none", "hf_expired", "still valid"),
        ({"refusal": (403, None, "Access to this model is disabled.")}, NAME, None, "refuses acme/tiny: Access to this model is disabled."),
        ({}, NAME + "@mian", None, "has no revision `mian`; there is main"),
        ({}, NAME + "@abc1234", None, "has no revision `abc1234`; there is main. A commit is named by all of its 40 digits"),
        ({}, NAME + ":Q4_K_M", None, "has no GGUF file with the tag `Q4_K_M`"),
        ({}, NAME + "/x.gguf", None, "has no file `x.gguf`"),
    ],
)  # fmt: skip
def test_each_refusal_is_told_from_the_others(binary, hub, home, fields, name, token, says):
    hub.tokens = {TOKEN}
    for field, value in fields.items():
        setattr(hub.repositories[NAME], field, value)
    said = refused(binary, hub, home, name, settings={"HF_TOKEN": token} if token else None)
    assert says.format(url=hub.url) in said
    assert "hf_expired" not in said
    assert hub.leaks() == []


def test_the_token_goes_to_the_hub_alone(binary, hub, home):
    hub.tokens = {TOKEN}
    home.mkdir()
    (home / "token").write_text(TOKEN + "\n")
    status, _, said = pull(binary, hub, home, settings={"ATTUNE_LOG": "trace"})
    assert status == 0, said
    assert hub.leaks() == []
    assert any(request.server == "store" for request in hub.requests)
    for request in hub.requests:
        assert TOKEN not in request.path
        assert request.server == "store" or request.authorization == f"Bearer {TOKEN}"
    said = refused(binary, hub, home.with_name("other"), settings={"HF_TOKEN": TOKEN.replace("_", " ")})
    assert "HF_TOKEN: the token has characters" in said and "loopback" not in said


@pytest.mark.parametrize("path", ["../x", "/etc/x", "a/../../x", "a//b", "config.json/x", "a\\..\\x"])
def test_a_list_that_names_files_elsewhere_is_refused(binary, hub, home, path):
    repository = hub.repositories[NAME]
    entries = [file.entry(name) for name, file in repository.commits[repository.branches["main"]].items()]
    repository.entries = [*entries, {**entries[0], "path": path}]
    assert "list of the files of acme/tiny is refused: the path" in refused(binary, hub, home)
    assert [path.name for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("oid", ["../../../x", "", "0123", "G" * 40])
def test_a_list_whose_checksums_are_none_is_refused(binary, hub, home, oid):
    repository = hub.repositories[NAME]
    entry = repository.file("model.safetensors").entry("model.safetensors")
    for hostile in ({**entry, "oid": oid}, {**entry, "lfs": {**entry["lfs"], "oid": oid}}):
        repository.entries = [hostile]
        assert "the checksum of `model.safetensors` is none" in refused(binary, hub, home)


def test_a_renamed_model_is_found_under_its_old_name(binary, hub, home):
    hub.add("acme/old", {}).moved_to = NAME
    folder = pulled(binary, hub, home, "acme/old")
    assert folder.parent.parent == cache(home, "acme/old")
    check(folder, hub)


def test_a_commit_stays_the_same_while_its_branch_moves(binary, hub, home):
    repository = hub.repositories[NAME]
    first = repository.branches["main"]
    repository.after_listing = lambda: repository.commit(files())
    folder = pulled(binary, hub, home)
    assert folder.name == first != repository.branches["main"]
    check(folder, hub)
    # A server that knows the model does not ask for a newer one; a pull does.
    newer = pulled(binary, hub, home)
    assert newer.name == repository.branches["main"]
    asked = len(hub.requests)
    assert pulled(binary, hub, home, f"{NAME}@{first}") == folder
    assert len(hub.requests) == asked, "a commit that is there needs no network"
    check(folder, hub)


def test_two_pulls_at_once_fetch_once(binary, hub, home):
    file = hub.repositories[NAME].file("model.safetensors")
    file.hold_after = 100_000
    first = start(binary, hub, home)
    wait_for(lambda: hub.asked(file.sha256), "the first pull's request")
    second = start(binary, hub, home)
    line = second.stderr.readline()
    while "waiting for another process that downloads model.safetensors" not in line:
        assert line, "the second pull does not wait"
        line = second.stderr.readline()
    file.released.set()
    outcomes = [finish(first), finish(second)]
    assert [status for status, _, _ in outcomes] == [0, 0], outcomes
    assert hub.sent(file) == len(file.content)
    check(Path(outcomes[0][1]), hub)


def test_a_full_disk_is_told_and_what_is_there_is_kept(binary, hub, home):
    file = hub.repositories[NAME].file("model.safetensors")
    half = SIZE // 2

    def limit():
        # Without this the system would end the process instead of failing its write.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))

    said = refused(binary, hub, home, preexec_fn=limit, restore_signals=False)
    assert "the disk is full" in said and "HF_HOME" in said
    assert part(home, file).stat().st_size == half
    check(pulled(binary, hub, home), hub)
    assert hub.asked(file.sha256)[-1].range == f"bytes={half}-"


def test_a_cache_that_cannot_be_made_is_told_with_the_variable_that_names_it(binary, hub, tmp_path):
    file = tmp_path / "file"
    file.write_text("in its place")
    assert "in the folder that HF_HOME or HF_HUB_CACHE names" in refused(binary, hub, file)
    assert file.read_text() == "in its place"


def test_offline_nothing_is_asked(binary, hub, home):
    for setting in ({"HF_HUB_OFFLINE": "1"}, {"TRANSFORMERS_OFFLINE": "yes"}):
        said = refused(binary, hub, home, settings=setting)
        assert f"run `attune pull {NAME}` without it" in said
    assert hub.requests == []
    hub.close()
    said = refused(binary, hub, home, settings={"HF_HUB_ETAG_TIMEOUT": "1"})
    assert "127.0.0.1 cannot be reached" in said


def test_proxies_are_used_and_excepted_as_the_environment_says(binary, hub, home):
    # All small, so that everything is on one server.
    hub.add(NAME, {name: content[:2000] for name, content in files().items() if name != "model.safetensors"}
            | {"config.json": CONFIG, "model.safetensors": weights(100)})  # fmt: skip
    settings = {"HF_ENDPOINT": "http://hub.invalid", "HF_HUB_ETAG_TIMEOUT": "2"}
    check(pulled(binary, hub, home, settings={**settings, "HTTP_PROXY": hub.url}), hub)
    other = home.with_name("other")
    check(pulled(binary, hub, other, settings={**settings, "ALL_PROXY": hub.url}), hub)
    asked = len(hub.requests)
    direct = {**settings, "HTTP_PROXY": hub.url, "NO_PROXY": "hub.invalid"}
    assert "hub.invalid cannot be reached" in refused(binary, hub, home.with_name("direct"), settings=direct)
    assert len(hub.requests) == asked
    socks = {**settings, "ALL_PROXY": hub.url.replace("http:", "socks5h:")}
    assert "ALL_PROXY names a SOCKS proxy" in refused(binary, hub, home.with_name("socks"), settings=socks)


def test_a_gguf_model_is_chosen_by_its_tag_with_all_its_parts(binary, hub, home):
    parts = [f"big/x-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    names = ["x-Q4_K_M.gguf", "x-Q2_K.gguf", "mmproj-x-Q4_K_M.gguf", *parts]
    hub.add(NAME, {name: b"GGUF" + name.encode() for name in names})
    assert pulled(binary, hub, home).name == "x-Q4_K_M.gguf"
    assert pulled(binary, hub, home, NAME + ":q2_k").name == "x-Q2_K.gguf"
    first = pulled(binary, hub, home, "https://huggingface.co/" + NAME + "/blob/main/" + parts[0])
    assert sorted(path.name for path in first.parent.iterdir()) == [Path(part).name for part in parts]
    assert not hub.asked("mmproj")
    status, _, said = pull(binary, hub, home, NAME + ":Q9")
    assert status == 1 and "x-Q2_K.gguf" in said and "mmproj" not in said


def test_weights_in_parts_are_those_that_the_index_names(binary, hub, home):
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = json.dumps({"weight_map": {"a": parts[0], "b": parts[1]}}).encode()
    several = {name: content for name, content in files().items() if name != "model.safetensors"}
    several |= {"model.safetensors.index.json": index, "other.safetensors": weights(9)}
    hub.add(NAME, several | {name: weights(5000) for name in parts})
    wanted = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json", *parts]
    check(pulled(binary, hub, home), hub, wanted)
    hub.add(NAME, several)
    status, _, said = pull(binary, hub, home)
    assert status == 1 and "names" in said and parts[0] in said


def test_a_model_that_cannot_be_served_is_refused_before_its_weights_are_fetched(binary, hub, home):
    hub.add(NAME, files() | {"config.json": b'{"model_type": "sorcery"}'})
    assert "config.json: model_type `sorcery` is not supported" in refused(binary, hub, home)
    assert not hub.asked("model.safetensors")
    hub.add(NAME, {"config.json": CONFIG, "pytorch_model.bin": b"a pickle", "tokenizer.json": b"{}"})
    assert "it has pytorch_model.bin, but Attune loads *.safetensors" in refused(binary, hub, home)


def test_a_text_that_is_no_name_is_refused_by_the_command_line(binary, hub, home):
    for name in ("../x", "a/b@../c", "https://example.org/a/b", "/etc/passwd"):
        process = start(binary, hub, home, name)
        out, said = process.communicate(timeout=30)
        assert process.returncode == 2 and not out, said
        assert "is not the name of a model on a hub" in said
    assert hub.requests == [] and not home.exists()


def test_without_a_terminal_there_is_no_bar(binary, hub, home):
    hub.repositories[NAME].file("model.safetensors").pace = 0.005
    status, out, said = pull(binary, hub, home)
    assert status == 0 and "\r" not in said and "\x1b" not in said
    assert f"{NAME} at commit" in said and "serve it: attune serve --model tiny=hf:acme/tiny" in said
    assert out.splitlines() == [str(snapshots(home)[0])]
