"""Builds the run stages of the Dockerfiles, with a program from this machine in place of the compiled one."""

import subprocess
import tempfile
from pathlib import Path

from . import bases
from .report import expect

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = "localhost/attune-program:check"
RUN = "localhost/attune:check"
STANDALONE = "localhost/attune:check-standalone"
CUDA = "localhost/attune:check-cuda"
LABELS = {"VERSION": "9.8.7", "REVISION": "0123abcd"}


def pack_program(engine, program):
    """Makes the image that stands for the build stages: the program, and the library in the driver's place, made by the
    project's own script from a stand-in of the toolkit's."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        subprocess.run(["strip", "-o", folder / "attune", program], check=True)
        second_engine(folder / "attune-mistralrs", program)
        library(folder / "libcuda.so", "int cuInit(int f) { return 1; } int cuNew(void) { return 1; }")
        subprocess.run(
            [ROOT / "docker" / "optional-driver", folder / "libcuda.so", folder / "libattune-cuda.so"], check=True
        )
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY attune attune-mistralrs libattune-cuda.so /\n")
        engine("build", "--tag", PROGRAM, folder)


def second_engine(path, program):
    """Puts the second engine's program at `path`: the one beside `program`, or one that says what it stands for."""
    built = Path(program).parent / "attune-mistralrs"
    if built.is_file():
        subprocess.run(["strip", "-o", path, built], check=True)
    else:
        path.write_text("#!/bin/sh\necho 'a stand-in: the second engine was not built' >&2\nexit 1\n")
        path.chmod(0o755)


def library(path, source, *flags):
    """Compiles a shared library that is named as the driver's."""
    command = ["cc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", *flags, "-o", path, "-x", "c", "-"]
    subprocess.run(command, input=source, text=True, check=True)


def without_compiling(text):
    """The Dockerfile with the packed program in place of the stages that compile. All other lines stay as they are."""
    lines = text.splitlines(keepends=True)
    stages = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    (build,) = (place for place, number in enumerate(stages) if lines[number].rstrip().endswith(" AS build"))
    first, after = stages[0], stages[build + 1]
    expect(build + 1 < len(stages), "no stage follows the build stage")
    return "".join([*lines[:first], f"FROM {PROGRAM} AS build\n", *lines[after:]])


def build(engine, dockerfile, tag, *arguments):
    """Builds an image from what the Dockerfile says after its build stage; returns its size in MB."""
    path = ROOT / "docker" / dockerfile
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as generated:
        generated.write(without_compiling(path.read_text()))
        generated.flush()
        labels = [word for name, value in LABELS.items() for word in ("--build-arg", f"{name}={value}")]
        engine(
            "build", "--network", "host", "--ignorefile", ROOT / ".dockerignore", "--file", generated.name,
            "--tag", tag, *labels, *arguments, ROOT, timeout=900,
        )  # fmt: skip
    return engine.inspect(tag)["Size"] // 1_000_000


def context_files(engine):
    """The files that `COPY . .` takes from the repository."""
    dockerfile = f"FROM {bases.DEBIAN}\nWORKDIR /context\nCOPY . .\n"
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile") as generated:
        generated.write(dockerfile)
        generated.flush()
        tag = "localhost/attune-context:check"
        engine("build", "--ignorefile", ROOT / ".dockerignore", "--file", generated.name, "--tag", tag, ROOT)
    found = engine("run", "--rm", "--network", "none", tag, "find", ".", "-type", "f", "-printf", "%P\\n")
    engine("rmi", "--force", tag)
    return found.splitlines()


def remove(engine):
    """Removes the images that this module makes."""
    for tag in (STANDALONE, CUDA, RUN, PROGRAM):
        engine.run("rmi", "--force", tag)
    engine.run("image", "prune", "--force")
