# The grader that the server runs at its start: each of these must be refused to it.
import os
import signal
import socket


def grade(sample, item):
    opened = []

    def attempt(what, act):
        try:
            act()
        except OSError:
            return
        opened.append(what)

    def fork():
        if os.fork() == 0:
            os._exit(0)

    attempt("read /etc/passwd", lambda: open("/etc/passwd").close())
    attempt("list /", lambda: os.listdir("/"))
    attempt("list the data folder", lambda: os.listdir(item["data"]))
    attempt("write outside of its folder", lambda: open(item["outside"], "w").close())
    attempt("read about processes", lambda: os.listdir("/proc/self"))
    attempt("open a socket", lambda: socket.socket().close())
    attempt("open a local socket", lambda: socket.socket(socket.AF_UNIX).close())
    attempt("start a process", fork)
    attempt("signal another process", lambda: os.kill(os.getppid(), 0))
    attempt("change a file's mode", lambda: os.chmod(item["data"], 0o700))
    attempt("watch over the limits of another process", lambda: limits_of(os.getppid()))
    surplus = set(os.environ) - set(item["environment"])
    if surplus:
        opened.append("read the environment of others")
    with open("own", "w") as file:
        file.write("kept")
    with open("own") as file:
        assert file.read() == "kept"
    os.remove("own")
    signal.getsignal(signal.SIGTERM)
    if opened:
        raise RuntimeError("it could " + ", ".join(opened))
    return 1.0


def limits_of(process):
    import resource

    resource.prlimit(process, resource.RLIMIT_NOFILE)
