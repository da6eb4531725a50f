"""Graders of the type `python`: what their code gets and gives, wherever graders work, and what happens to code that is broken,
greedy or hostile. The server runs it by the interpreter of these tests."""

import ctypes
import json
import os
import sys
import threading
from pathlib import Path

import attunelib
import httpx
import pytest
from conftest import QUICK, create_job, create_key, events, sdk, upload, wait_for, wait_for_end
from evallib import finished, items


def has_landlock():
    """Whether this kernel has the sandbox that the server asks for; it refuses to start without one."""
    create_ruleset, version = 444, 1
    return ctypes.CDLL(None).syscall(create_ruleset, None, ctypes.c_size_t(0), version) > 0


pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(not has_landlock(), reason="this kernel has no Landlock: no code of graders runs here"),
]

RUN, VALIDATE = "/v1/fine_tuning/alpha/graders/run", "/v1/fine_tuning/alpha/graders/validate"
SECONDS, MEMORY, DISK = 3, 512, 16
ALLOWED = {
    "ATTUNE_GRADERS__PYTHON": sys.executable,
    "ATTUNE_GRADERS__SECONDS": str(SECONDS),
    "ATTUNE_GRADERS__MEMORY_MIB": str(MEMORY),
    "ATTUNE_GRADERS__DISK_MIB": str(DISK),
}
SAME = 'def grade(sample, item):\n    return float(sample["output_text"] == item["answer"])\n'
CONFIG = {"type": "custom", "item_schema": {"type": "object"}}


@pytest.fixture(scope="module")
def allowing(start_server):
    return start_server(settings=ALLOWED)


@pytest.fixture(scope="module")
def asker(allowing):
    return sdk(allowing)


@pytest.fixture(scope="module")
def http(allowing):
    with httpx.Client(base_url=allowing.url, timeout=120) as client:
        yield client


def python(source, **fields):
    return {"type": "python", "name": "code", "source": source, **fields}


def body(expression, *before):
    """A source whose `grade` does `expression`."""
    return "\n".join([*before, "def grade(sample, item):", *(f"    {line}" for line in expression.splitlines())])


def run(http, source, text="x", item=None):
    answer = http.post(RUN, json={"grader": python(source), "model_sample": text, "item": item or {}})
    assert answer.status_code == 200, answer.text
    return answer.json()


def failure(http, source, **fields):
    """What is said of code that has no score."""
    answer = run(http, source, **fields)
    errors = answer["metadata"]["errors"]
    assert answer["reward"] == 0 and errors["python_grader_runtime_error"] is True, answer
    assert errors["python_grader_server_error"] is False and errors["python_grader_server_error_type"] is None
    assert errors["python_grader_runtime_error_details"] == errors["details"][0]
    return errors["details"][0]


def interpreters(server):
    """The processes that the server has started for graders."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == server.process.pid and b"def sample_of" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def folders(server):
    """What interpreters have in the data folder."""
    return [path for home in (Path(server.data_dir) / "graders").iterdir() for path in home.iterdir() if path.name != "lock"]


def nothing_left(server):
    wait_for(lambda: not interpreters(server) and not folders(server), "the end of every interpreter", 20)


def made_eval(client, *criteria):
    return client.evals.create(name="code", data_source_config=CONFIG, testing_criteria=list(criteria))


def judged(client, eval, lines):
    return client.evals.runs.create(
        eval.id, data_source={"type": "jsonl", "source": {"type": "file_content", "content": lines}}
    )


# What code gets and gives.


def test_the_client_runs_and_validates_code(asker):
    for text, reward in (("Paris", 1), ("paris", 0)):
        grader = python(SAME, image_tag="2025-05-08")
        answer = asker.fine_tuning.alpha.graders.run(grader=grader, model_sample=text, item={"answer": "Paris"})
        assert (answer.reward, answer.metadata.name, answer.metadata.type) == (reward, "code", "python")
        assert not any(answer.metadata.errors.model_dump().values())
        assert answer.metadata.token_usage is None
    shown = asker.fine_tuning.alpha.graders.validate(grader=grader).grader
    assert (shown.type, shown.source, shown.image_tag) == ("python", SAME, "2025-05-08")


def test_code_gets_the_sample_and_the_item_as_dicts(http):
    source = body("raise Exception(repr((sample, item)))")
    said = failure(http, source, text='{"a": [1, 2.5, null]}', item={"deep": {"list": [True, "ü\u2028"]}})
    sample = {
        "output_text": '{"a": [1, 2.5, null]}',
        "output_json": {"a": [1, 2.5, None]},
        "output_tools": [],
        "choices": [],
    }
    assert repr((sample, {"deep": {"list": [True, "ü\u2028"]}})) in said
    assert 'line 2, in grade' in said and "raise Exception(repr((sample, item)))" in said
    # An answer that is no JSON has no output_json.
    for text in ("plain", "", "NaN", "[1,", "[" * 100_000):
        assert run(http, body('return "output_json" not in sample'), text=text)["reward"] == 1, text
    assert run(http, body('return sample["output_json"] == 5'), text=" 5 ")["reward"] == 1


@pytest.mark.parametrize(
    "value, reward",
    [
        ("0.25", 0.25), ("3", 3), ("-2.5", -2.5), ("True", 1), ("False", 0), ("Decimal('0.125')", 0.125),
        ("Fraction(1, 4)", 0.25), ("1e308", 1e308), ("10 ** 20", 1e20), ("Real()", 0.5),
    ],
)  # fmt: skip
def test_numbers_are_scores(http, value, reward):
    before = "from decimal import Decimal\nfrom fractions import Fraction\nclass Real:\n    def __float__(self): return 0.5"
    assert run(http, body(f"return {value}", before))["reward"] == reward


@pytest.mark.parametrize(
    "value", ["None", "'0.5'", "b'1'", "float('nan')", "float('inf')", "-float('inf')", "1j", "[1]", "{}", "10 ** 400",
              "Exception()", "grade", "Text()"],
)  # fmt: skip
def test_what_is_no_finite_number_is_an_error_and_scores_0(http, value):
    assert failure(http, body(f"return {value}", "class Text:\n    def __float__(self): return '1'"))


def test_code_that_fails_says_where(http):
    for act, part in [
        ("return 1 / 0", "ZeroDivisionError"),
        ("return item['nothing']", "KeyError: 'nothing'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("return grade(sample, item)", "RecursionError"),
        ("yield 1", "not generator"),
        ("raise ValueError('x' * 10_000_000)", "ValueError: xxx"),
        ("raise ValueError('\\0 \\ud800 ü')", "ValueError: \ufffd ? ü"),
        ("class Odd(Exception):\n    def __str__(self): raise ValueError\nraise Odd", "Odd"),
        ("import os; os._exit(3)", "exit status: 3"),
        ("import ctypes; ctypes.string_at(0)", "signal: 11"),
        ("import os; os.kill(os.getpid(), 9)", "signal: 9"),
    ]:
        said = failure(http, body(act))
        assert part in said and len(said) < 10_000, (act, said)
    assert "takes 1 positional argument but 2 were given" in failure(http, "def grade(sample): return 1")
    assert "not coroutine" in failure(http, "async def grade(sample, item): return 1")


def test_source_that_cannot_be_loaded_is_found_before_it_is_used(asker, http):
    wrong = [
        ("def grade(sample, item):\n    return 1 +\n", "line 2"),
        ("def other(sample, item):\n    return 1\n", "defines no function `grade(sample, item)`"),
        ("", "defines no function"),
        ("grade = 3", "defines no function"),
        ("import nothing_of_this_name\n", "No module named 'nothing_of_this_name'"),
        ("raise ValueError('at once')", "ValueError: at once"),
        ("while True: pass", f"more than {SECONDS} seconds"),
        ("import os\nos._exit(0)", "ended its interpreter"),
    ]
    for source, part in wrong:
        for path, sent, param in [
            (VALIDATE, {"grader": python(source)}, "grader.source"),
            (
                "/v1/evals",
                {"data_source_config": CONFIG, "testing_criteria": [python(SAME), python(source)]},
                "testing_criteria[1].source",
            ),
        ]:
            answer = http.post(path, json=sent)
            error = answer.json()["error"]
            assert answer.status_code == 400 and error["code"] == "invalid_grader", answer.text
            assert error["param"] == param and part in error["message"], error
        assert part in failure(http, source)
    for grader, param, part in [
        (python("x" * (256 * 1024 + 1)), "grader.source", "262144 bytes"),
        (python("x\0"), "grader.source", "code 0"),
        (python(SAME, image_tag=3), "grader.image_tag", "must be a text"),
        (python(SAME, input="x"), "grader.input", "not a field"),
        ({"type": "python", "name": "p"}, "grader.source", "Missing required"),
    ]:
        error = http.post(VALIDATE, json={"grader": grader}).json()["error"]
        assert error["param"] == param and part in error["message"], error
    large = SAME + "#" * (256 * 1024 - len(SAME))
    assert http.post(VALIDATE, json={"grader": python(large)}).status_code == 200


def test_code_is_a_part_of_a_formula(asker, http):
    grader = {
        "type": "multi",
        "name": "both",
        "graders": {"half": python(body("return 0.5")), "same": python(SAME)},
        "calculate_output": "half + 2 * same",
    }
    answer = asker.post(RUN.removeprefix("/v1"), cast_to=object, body={
        "grader": grader, "model_sample": "a", "item": {"answer": "a"}})  # fmt: skip
    assert (answer["reward"], answer["sub_rewards"]) == (2.5, {"half": 0.5, "same": 1})
    grader["graders"]["same"] = python("x x")
    error = http.post(VALIDATE, json={"grader": grader}).json()["error"]
    assert error["param"] == "grader.graders.same.source" and "SyntaxError" in error["message"]


# Where graders work.


def test_an_eval_judges_by_code(asker):
    nested = body('return sample["choices"][0]["message"]["content"] == item["answer"]')
    made = made_eval(asker, python(SAME, pass_threshold=0.5), {**python(nested), "name": "nested"})
    kept = asker.evals.retrieve(made.id).testing_criteria[0]
    assert (kept.type, kept.source, kept.pass_threshold) == ("python", SAME, 0.5)
    lines = [
        {"item": {"answer": str(number % 2)}, "sample": {"choices": [{"message": {"content": "1"}}]}} for number in range(20)
    ]
    ended = finished(asker, judged(asker, made, [*lines, {"item": {}, "sample": {"output_text": "1"}}]))
    counts = ended.result_counts
    assert (ended.status, counts.passed, counts.failed, counts.errored) == ("completed", 10, 10, 1), ended
    first, *_, last = items(asker, ended)
    assert [result.type for result in first.results] == ["python-grader"] * 2
    assert last.status == "error" and "KeyError: 'answer'" in last.results[0].model_extra["error"]


def test_without_a_threshold_an_item_passes_with_1(asker):
    made = made_eval(asker, python(body('return item["score"]')))
    ended = finished(asker, judged(asker, made, [{"item": {"score": score}} for score in (0, 0.99, 1, 1.5)]))
    assert (ended.result_counts.passed, ended.result_counts.failed) == (2, 2)


def test_items_of_a_run_share_interpreters_and_a_fault_costs_its_own_item_alone(asker, allowing):
    """How many interpreters a run of 200 items takes shows in the numbers that each has counted."""
    source = body(
        "global seen\nseen += 1\nif item['act'] == 'exit': os._exit(1)\nif item['act'] == 'raise': raise ValueError\nreturn seen",
        "import os\nseen = 0",
    )
    made = made_eval(asker, python(source))
    acts = ["go"] * 200
    acts[50], acts[120] = "exit", "raise"
    ended = finished(asker, judged(asker, made, [{"item": {"act": act, "number": n}} for n, act in enumerate(acts)]))
    counts = ended.result_counts
    assert (counts.passed, counts.failed, counts.errored) == (198, 0, 2)
    scores = [result.score for item in items(asker, ended, limit=100) for result in item.results]
    # One interpreter had the items one after the other, and another one those after it was ended.
    assert len(scores) == 200 and max(scores) >= 80, sorted(scores)
    assert sum(score == 1 for score in scores) == 2
    nothing_left(allowing)
    # The next run begins anew.
    again = finished(asker, judged(asker, made, [{"item": {"act": "go"}}]))
    assert items(asker, again)[0].results[0].score == 1


def test_a_cancelled_run_ends_its_interpreters(asker, allowing):
    made = made_eval(asker, python(body("while True: pass")))
    going = judged(asker, made, [{"item": {}} for _ in range(100)])
    wait_for(lambda: interpreters(allowing), "an interpreter", 30)
    asker.evals.runs.cancel(going.id, eval_id=made.id)
    assert finished(asker, going).status == "canceled"
    nothing_left(allowing)


def test_a_fine_tune_takes_an_alias_by_code(asker, allowing, tickets):
    source = body(
        'read = sample.get("output_json")\n'
        'return isinstance(read, dict) and read.keys() == json.loads(item["answer"]).keys()',
        "import json",
    )
    made = made_eval(asker, python(source, name="form", pass_threshold=1))
    content = [
        {"item": {"question": line["messages"][0]["content"], "answer": line["messages"][1]["content"]}}
        for line in tickets[:12]
    ]
    eval = {
        "id": made.id,
        "data_source": {
            "type": "completions",
            "input_messages": {"type": "template", "template": [{"role": "user", "content": "{{item.question}}"}]},
            "sampling_params": {"temperature": 0, "max_completion_tokens": 60},
            "source": {"type": "file_content", "content": content},
        },
        "promote_if": {"alias": "by-code", "criterion": "form", "min_pass_rate": 0.5, "better_than": "base"},
    }
    job = create_job(asker, upload(asker, tickets[:200]), {**QUICK, "n_epochs": 3}, extra_body={"eval": eval})
    job = wait_for_end(asker, job.id, within=150)
    assert job.status == "succeeded", job.error
    found = wait_for(
        lambda: [event for event in events(asker, job.id) if event.data and "eval_id" in event.data], "the figures", 120
    )
    assert found[0].data["promoted"] is True, found[0]


def test_a_distillation_keeps_what_code_lets_pass(asker, allowing, questions):
    lines = [{"messages": line["messages"][:1], "even": number % 2 == 0} for number, line in enumerate(questions[:6])]
    plan = {
        "teacher": "demo",
        "temperature": 0,
        "max_tokens": 80,
        "graders": [python(body('return item["even"]'))],
        "hyperparameters": {"n_epochs": 1, "batch_size": 1, "rank": 2},
    }
    file = upload(asker, lines)
    job = asker.fine_tuning.jobs.create(
        model="demo", training_file=file, method={"type": "distillation", "distillation": plan}
    )
    job = wait_for_end(asker, job.id, within=150)
    report = asker.files.content(job.method.distillation["report_file"]).json()
    assert report["left_out"].get("low_score") == 3, report
    error = httpx.post(
        f"{allowing.url}/v1/fine_tuning/jobs",
        json={
            "model": "demo", "training_file": file,
            "method": {"type": "distillation", "distillation": {**plan, "graders": [python("1 +")]}},
        },
    ).json()["error"]  # fmt: skip
    assert error["param"] == "method.distillation.graders[0].source", error


# Code that is greedy or hostile.

HELD = {
    "files of the machine": "open('/etc/passwd').read()",
    "the folder above": "os.listdir('..')",
    "the root": "os.listdir('/')",
    "a file of its own elsewhere": "open('/tmp/of-a-grader', 'w')",
    "the data folder": "os.listdir(item['data'])",
    "the blobs": "os.listdir(item['data'] + '/blobs')",
    "a file beside its folder": "open(item['data'] + '/graders/of-a-grader', 'w')",
    "the server's environment": "open(f'/proc/{item[\"pid\"]}/environ').read()",
    "the server's memory": "open(f'/proc/{item[\"pid\"]}/mem', 'rb')",
    "its own process": "open('/proc/self/mem', 'rb')",
    "the processes": "os.listdir('/proc')",
    "its own interpreter": "open(os.__file__, 'r+')",
    "a module to be cut": "os.open(os.__file__, os.O_RDONLY | os.O_TRUNC)",
    "a module beside others": "open(os.path.dirname(os.__file__) + '/of_a_grader.py', 'w')",
    "a link": "os.link(os.__file__, 'link')",
    "a symbolic link": "os.symlink('/etc/passwd', 'link')",
    "a named pipe": "os.mkfifo('pipe')",
    "the mode of a file": "os.chmod(item['data'], 0o777)",
    "the times of a file": "os.utime(item['data'])",
    "a connection": "socket.create_connection(('127.0.0.1', item['port']), 1)",
    "a socket": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "a local socket": "socket.socket(socket.AF_UNIX)",
    "a pair of datagram sockets": "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "a name": "socket.getaddrinfo('localhost', 80)[0][9]",
    "a process": "os.fork()",
    "a program": "subprocess.run(['/bin/sh', '-c', 'id'])",
    "another program": "os.execv('/bin/sh', ['sh', '-c', 'id'])",
    "a thread": "threading.Thread(target=print).start()",
    "the server's life": "os.kill(item['pid'], 9)",
    "its parent's life": "os.kill(os.getppid(), 9)",
    "all lives": "os.kill(-1, 9)",
    "its group's life": "os.killpg(0, 9)",
    "the server's limits": "resource.prlimit(item['pid'], resource.RLIMIT_NOFILE, (8, 8))",
    "its own limits": "resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)",
    "the server's priority": "os.setpriority(os.PRIO_PROCESS, item['pid'], 19)",
    "the server's processors": "os.sched_setaffinity(item['pid'], {0})",
    "another user": "os.setuid(65534)",
    "another root": "os.chroot('.')",
    "signals to the server": "fcntl.fcntl(0, fcntl.F_SETOWN, item['pid'])",
    "a terminal": "open('/dev/tty')",
}


@pytest.mark.parametrize("what", HELD)
def test_code_reaches_nothing_outside(http, allowing, what):
    source = body(
        f"try:\n    {HELD[what]}\nexcept (OSError, RuntimeError, ValueError, IndexError) as error:\n    return 1\nreturn 0",
        "import fcntl, os, resource, socket, subprocess, threading",
    )
    item = {"data": str(allowing.data_dir), "pid": allowing.process.pid, "port": int(allowing.url.rpartition(":")[2])}
    answer = run(http, source, item=item)
    assert answer["reward"] == 1, answer
    assert allowing.process.poll() is None and not Path("/tmp/of-a-grader").exists()


# Numbers of system calls on x86-64: name, number, arguments.
CALLS = [
    ("ptrace", 101, "16, pid, 0, 0"), ("process_vm_readv", 310, "pid, 0, 0, 0, 0, 0"), ("pidfd_open", 434, "pid, 0"),
    ("pidfd_send_signal", 424, "0, 9, 0, 0"), ("kcmp", 312, "pid, pid, 0, 0, 0"), ("keyctl", 250, "0, 0"),
    ("add_key", 248, "0, 0, 0, 0, 0"), ("bpf", 321, "0, 0, 0"), ("io_uring_setup", 425, "1, 0"), ("mount", 165, "0, 0, 0, 0, 0"),
    ("umount2", 166, "b'.', 0"), ("unshare", 272, "0x10000000"), ("setns", 308, "3, 0"), ("userfaultfd", 323, "0"),
    ("perf_event_open", 298, "0, 0, 0, 0, 0"), ("clone", 56, "0x11, 0, 0, 0, 0"), ("clone3", 435, "0, 0"), ("vfork", 58, ""),
    ("memfd_create", 319, "b'x', 0"), ("shmget", 29, "0, 4096, 0o1600"), ("msgget", 68, "0, 0o1600"), ("mq_open", 240, "b'x', 66, 0o600, 0"),
    ("prctl (parent's death)", 157, "1, 0, 0, 0, 0"), ("seccomp", 317, "0, 0, 0"), ("tkill", 200, "pid, 0"),
    ("rt_sigqueueinfo", 129, "pid, 0, 0"), ("inotify_init1", 294, "0"), ("fanotify_init", 300, "0, 0"), ("truncate", 76, "b'x', 0"),
    ("setxattr", 188, "b'.', b'user.x', b'y', 1, 0"), ("execveat", 322, "-1, b'/bin/ls', 0, 0, 0"), ("openat2", 437, "-100, 0, 0, 0"),
    ("personality", 135, "0x0400000"), ("sendmsg", 46, "1, 0, 0"), ("mknod", 133, "b'n', 0o10600, 0"), ("reboot", 169, "0, 0, 0, 0"),
    ("init_module", 175, "0, 0, 0"), ("open_by_handle_at", 304, "0, 0, 0"), ("setsid", 112, ""), ("x32 getpid", 0x40000027, ""),
    ("one that no kernel has", 999, ""),
]  # fmt: skip


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_calls_of_the_system_are_refused_below_the_interpreter_too(http, allowing):
    calls = ", ".join(f"({name!r}, ({number}, {arguments}))" for name, number, arguments in CALLS)
    source = body(
        f"pid = item['pid']\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"done = [name for name, call in [{calls}]\n"
        f"        if libc.syscall(*call) != -1 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)]\n"
        f"if done: raise Exception(done)\nreturn 1",
        "import ctypes, errno",
    )
    answer = run(http, source, item={"pid": allowing.process.pid})
    assert answer["reward"] == 1, answer


def test_code_has_no_environment_no_descriptors_and_one_folder(http, allowing):
    source = body(
        "open_ones = []\nfor number in range(256):\n    try: os.fstat(number)\n    except OSError: continue\n"
        "    open_ones.append(number)\nraise Exception(json.dumps([dict(os.environ), os.listdir('.'), open_ones, os.getcwd()]))",
        "import json, os",
    )
    said = failure(http, source)
    environment, files, descriptors, folder = json.loads(said[said.rindex("Exception: ") + len("Exception: ") :])
    names = {"HOME", "TMPDIR", "LANG", "LC_CTYPE"}
    assert {name for name in environment if not name.endswith("_NUM_THREADS")} <= names, environment
    # The three of every program, and the two that it is talked to by.
    assert files == [] and len(descriptors) == 5, (files, descriptors)
    assert Path(folder).parent.parent == Path(allowing.data_dir).resolve() / "graders"
    kept = body(
        "with tempfile.TemporaryDirectory() as folder, open(folder + '/x', 'w') as file: file.write('x')\n"
        "with tempfile.TemporaryFile() as file: file.write(b'x')\n"
        "os.makedirs('a/b'); os.rename('a/b', 'a/c'); shutil.rmtree('a')\n"
        "pathlib.Path('kept').write_text('x')\nreturn 1",
        "import os, pathlib, shutil, tempfile",
    )
    assert run(http, kept)["reward"] == 1
    nothing_left(allowing)


GREEDY = {
    "loops": ("while True: pass", f"more than {SECONDS} seconds"),
    "sleeps": ("time.sleep(1000)", f"more than {SECONDS} seconds"),
    "ignores signals": (
        "for number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n    except OSError: pass\nwhile True: pass",
        f"more than {SECONDS} seconds",
    ),
    "takes memory": ("x = []\nwhile True: x.append(bytearray(10_000_000))", "MemoryError"),
    "maps memory": ("x = []\nwhile True: x.append(mmap.mmap(-1, 1 << 24))", "Cannot allocate memory"),
    "takes memory in one piece": ("return len(bytearray(10 ** 12))", "MemoryError"),
    "writes a large file": ("with open('x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))", "File too large"),
    "writes many files": (
        "for number in itertools.count(): open(str(number), 'wb').write(bytes(1 << 18))", "filled its folder",
    ),
    "writes files without names": (
        "kept = []\nfor number in range(40):\n    kept.append(open('x', 'wb', 0)); os.remove('x'); kept[-1].write(bytes(1 << 20))\n"
        "time.sleep(1000)",
        "filled its folder",
    ),
    "writes into a folder that cannot be listed": (
        "os.mkdir('x', 0o300)\nfor number in range(1000): open(f'x/{number}', 'wb').write(bytes(1 << 18))\ntime.sleep(1000)",
        "filled its folder",
    ),
    "nests folders": ("while True: os.mkdir('x'); os.chdir('x')", "filled its folder"),
    "makes many folders": ("for number in itertools.count(): os.mkdir(str(number))", "filled its folder"),
    "opens files": ("kept = [open(os.devnull) for _ in range(1000)]", "Too many open files"),
    "answers for itself": (
        "for number in range(3, 64):\n    try: os.write(number, b'{\"turn\": \"x\", \"score\": 1}\\n')\n    except OSError: pass\nreturn 1",
        "wrote into what the server reads",
    ),
    "answers without an end": (
        "for number in range(3, 64):\n    try:\n        while True: os.write(number, b'x' * 4096)\n    except OSError: pass",
        "wrote into what the server reads",
    ),
    "closes everything": ("os.closerange(0, 64)\nreturn 1", "ended its interpreter"),
    "becomes another interpreter": (
        "os.execv(sys.executable, [sys.executable, '-I', '-c', 'while True: pass'])", "ended its interpreter",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def patient(start_server):
    """A server that leaves code so much time that it surely meets another limit before."""
    return start_server(settings={**ALLOWED, "ATTUNE_GRADERS__SECONDS": "100"})


@pytest.mark.parametrize("what", GREEDY)
def test_code_that_takes_too_much_is_ended_and_leaves_nothing(allowing, patient, what):
    act, part = GREEDY[what]
    server = allowing if "seconds" in part else patient
    with httpx.Client(base_url=server.url, timeout=120) as http:
        said = failure(http, body(act, "import itertools, mmap, os, signal, sys, time"))
        assert part in said, said
        nothing_left(server)
        assert run(http, body("return 1"))["reward"] == 1


def test_what_code_prints_goes_nowhere(http):
    source = body("print('x' * 10_000_000)\nsys.stderr.write('y' * 1_000_000)\nos.write(1, b'z')\nreturn len(sys.stdin.read()) == 0", "import os, sys")
    assert run(http, source)["reward"] == 1


def test_a_part_of_the_standard_library_works(http):
    source = body(
        "return asyncio.run(later()) + sqlite3.connect(':memory:').execute('select 1').fetchone()[0]",
        "import asyncio, dataclasses, decimal, difflib, hashlib, random, re, sqlite3, ssl, statistics, unicodedata, zoneinfo\n"
        "@dataclasses.dataclass\nclass Kept:\n    x: int = 1\nasync def later():\n    await asyncio.sleep(0.01)\n    return Kept().x",
    )
    assert run(http, source)["reward"] == 2


def test_one_organisation_leaves_a_place_for_others(binary, start_server):
    server = start_server(settings={**ALLOWED, "ATTUNE_API_KEYS": "first-admin-key", "ATTUNE_GRADERS__SECONDS": "60"})
    keys = [create_key(binary, server.data_dir, name)[0] for name in ("greedy", "modest")]
    greedy, modest = (httpx.Client(base_url=server.url, timeout=120, headers={"Authorization": f"Bearer {key}"}) for key in keys)

    def occupy():
        try:
            greedy.post(RUN, json={"grader": python(body("while True: pass")), "model_sample": "x"})
        except httpx.HTTPError:
            pass

    threads = [threading.Thread(target=occupy, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: interpreters(server), "an interpreter", 30)
    assert len(interpreters(server)) == 1
    assert modest.post(RUN, json={"grader": python(body("return 1")), "model_sample": "x"}).json()["reward"] == 1
    assert len(interpreters(server)) == 1, "the others wait"
    # A client that hangs up ends its interpreter, long before its time.
    with pytest.raises(httpx.ReadTimeout):
        modest.post(RUN, json={"grader": python(body("while True: pass")), "model_sample": "x"}, timeout=2)
    wait_for(lambda: len(interpreters(server)) == 1, "the end of the interpreter", 20)
    server.stop()
    assert server.process.returncode == 0, server.tail()
    assert not interpreters(server)


def test_code_ends_with_a_server_that_is_killed_and_its_folder_goes_with_the_next(start_server):
    server = start_server(settings={**ALLOWED, "ATTUNE_GRADERS__SECONDS": "100"})
    made = made_eval(sdk(server), python(body("open('kept', 'w').write('x')\nwhile True: pass")))
    judged(sdk(server), made, [{"item": {}}])
    (process,) = wait_for(lambda: interpreters(server), "an interpreter", 30)
    wait_for(lambda: any((folder / "kept").exists() for folder in folders(server)), "its file", 30)
    server.kill()
    wait_for(lambda: not Path(f"/proc/{process}").exists(), "the end of the interpreter", 20)
    left = set((Path(server.data_dir) / "graders").iterdir())
    again = start_server(data_dir=server.data_dir)
    # Code is not allowed any more, so nothing looks there; and what was begun with it ends with the reason.
    (eval,) = sdk(again).evals.list().data
    (run_,) = sdk(again).evals.runs.list(eval.id).data
    ended = finished(sdk(again), run_)
    assert (ended.status, ended.error.code) == ("failed", "invalid_grader") and "[graders]" in ended.error.message
    again.stop()
    third = start_server(data_dir=server.data_dir, settings=ALLOWED)
    assert not left & set((Path(third.data_dir) / "graders").iterdir())


# The setting.


def test_without_the_setting_the_refusal_says_how_it_is_allowed(client, http, start_server):
    server = start_server()
    answer = httpx.post(f"{server.url}{VALIDATE}", json={"grader": python(SAME)})
    error = answer.json()["error"]
    assert answer.status_code == 400 and (error["param"], error["code"]) == ("grader.type", "invalid_grader")
    assert "runs no code of its callers" in error["message"] and "[graders]" in error["message"]
    multi = {"type": "multi", "name": "m", "graders": {"a": python(SAME)}, "calculate_output": "a"}
    error = httpx.post(f"{server.url}{RUN}", json={"grader": multi, "model_sample": "x"}).json()["error"]
    assert error["param"] == "grader.graders.a.type"
    assert not (Path(server.data_dir) / "graders").exists()


@pytest.mark.parametrize(
    "settings, part",
    [
        ({"PYTHON": "/nowhere/python3"}, "/nowhere/python3: it cannot be run"),
        ({"PYTHON": "python3"}, "must be an absolute path"),
        ({"PYTHON": "/bin/true"}, "does not answer as Python does"),
        ({"PYTHON": "/bin/false"}, "it cannot be run"),
        ({"FOLDERS": '["/"]'}, "graders would read it"),
        ({"FOLDERS": '["/nowhere"]'}, "/nowhere: it must be an absolute path that is there"),
        ({"MEMORY_MIB": "1"}, "memory_mib must be"),
        ({"SECONDS": "0"}, "seconds must be"),
        ({"AT_ONCE": "1"}, "at_once must be"),
        ({"PYTHONS": "x"}, "Did you mean `python`?"),
    ],
)
def test_a_setting_that_cannot_be_followed_ends_the_start(binary, tmp_path, settings, part):
    tmp_path.chmod(0o711)
    given = {f"ATTUNE_GRADERS__{name}": value for name, value in settings.items()}
    with pytest.raises(attunelib.ServerError) as refused:
        attunelib.Server(binary, tmp_path / "data", settings={**ALLOWED, **given}).start()
    assert part in str(refused.value)


def test_folders_of_the_operator_can_be_read_and_the_data_cannot_be_among_them(binary, tmp_path, start_server):
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "words.txt").write_text("kept")
    server = start_server(settings={**ALLOWED, "ATTUNE_GRADERS__FOLDERS": json.dumps([str(shared)])})
    with httpx.Client(base_url=server.url, timeout=60) as client:
        assert run(client, body(f"return open({str(shared / 'words.txt')!r}).read() == 'kept'"))["reward"] == 1
        assert "PermissionError" in failure(client, body(f"open({str(shared / 'words.txt')!r}, 'a')"))
    with pytest.raises(attunelib.ServerError, match="graders would read it"):
        attunelib.Server(
            binary, shared / "data", settings={**ALLOWED, "ATTUNE_GRADERS__FOLDERS": json.dumps([str(shared)])}
        ).start()


# Keeps a server from the call with this number, as an old kernel or a container would.
DENY = """
import ctypes, os, struct, sys
number, error = int(sys.argv[1]), 38
filters = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(filters)
program = struct.pack("HxxxxxxP", len(filters) // 8, ctypes.addressof(buffer))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
@pytest.mark.parametrize("call, part", [(444, "Landlock"), (446, "Landlock"), (317, "seccomp")])
def test_without_the_kernels_part_the_server_does_not_start(tmp_path, binary, call, part):
    """Never a weaker sandbox in silence."""
    wrapper = tmp_path / "attune"
    wrapper.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'deny.py'} {call} {binary} \"$@\"\n")
    wrapper.chmod(0o755)
    (tmp_path / "deny.py").write_text(DENY)
    tmp_path.chmod(0o711)
    with pytest.raises(attunelib.ServerError) as refused:
        attunelib.Server(wrapper, tmp_path / "data", settings=ALLOWED).start()
    assert part in str(refused.value) and "no sandbox" in str(refused.value)
