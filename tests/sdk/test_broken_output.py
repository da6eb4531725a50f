"""The server does not depend on whoever reads its output: closed, full, broken and unread, at its start and later."""

import contextlib
import os
import random
import shutil
import signal
import subprocess

import attunelib
import httpx
import pytest
from conftest import wait_for

ROOT = attunelib.ROOT


def closed():
    """An output that is closed when the program starts."""
    return None


def full():
    """A disk without room."""
    return os.open("/dev/full", os.O_WRONLY)


def broken():
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def unread():
    """A pipe that holds all it can, and that nobody empties."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    KEPT.append(reader)
    return writer


# Readers that must stay open, or the pipe would be broken instead of full.
KEPT = []


@contextlib.contextmanager
def serve(binary, stdout, stderr):
    """A server with these outputs: the process and its address, on a loopback address of its own, since with its
    standard output gone it cannot tell which port it chose."""
    data_dir = attunelib.data_folder()
    address = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}:8080"
    redirect = "".join(f" {number}>&-" for number, output in ((1, stdout), (2, stderr)) if output is None)
    command = [str(binary), "serve", "--listen", address, "--data-dir", str(data_dir), "--log", "debug"]
    process = subprocess.Popen(
        ["bash", "-c", f'exec "$@"{redirect}', "bash", *command],
        cwd=ROOT,
        env=attunelib.environment(),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    for output in (stdout, stderr):
        if output is not None:
            os.close(output)
    try:
        yield process, f"http://{address}"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(data_dir, ignore_errors=True)


def is_ready(process, url):
    assert process.poll() is None, f"the server ended with status {process.returncode}"
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


def answers(url):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).status_code == 200


def stops(process):
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


@pytest.mark.parametrize("output", [closed, full, broken, unread])
@pytest.mark.parametrize("which", ["stdout", "stderr"])
def test_a_server_whose_output_cannot_be_written_serves_and_stops(binary, which, output):
    outputs = {name: output() if name == which else os.open(os.devnull, os.O_WRONLY) for name in ("stdout", "stderr")}
    with serve(binary, **outputs) as (process, url):
        wait_for(lambda: is_ready(process, url), "the server", within=90)
        assert answers(url)
        assert httpx.get(f"{url}/v1/nowhere").status_code == 404
        assert answers(url)
        assert stops(process) == 0


def test_a_server_whose_log_breaks_while_it_serves_goes_on_and_stops(binary):
    reader, writer = os.pipe()
    with serve(binary, os.open(os.devnull, os.O_WRONLY), writer) as (process, url):
        # The log is read until the server is ready, by whatever then dies.
        supervisor = subprocess.Popen(["cat"], stdin=reader, stdout=subprocess.DEVNULL)
        os.close(reader)
        wait_for(lambda: is_ready(process, url), "the server", within=90)
        supervisor.kill()
        supervisor.wait()
        for _ in range(3):
            assert answers(url)
        assert stops(process) == 0


def test_a_command_whose_reader_has_gone_says_nothing(binary):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([binary, "openapi"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert done.returncode != 0
    assert done.stderr == ""


def test_a_command_that_cannot_write_its_answer_fails(binary):
    with open("/dev/full", "w") as disk:
        done = subprocess.run([binary, "openapi"], stdout=disk, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode != 0
    assert "write to standard output" in done.stderr
