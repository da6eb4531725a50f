"""Stand-ins for the images that the Dockerfiles and the compose file begin with, for machines that reach no registry.
They are made of Debian's packages and kept in the engine's storage."""

import subprocess
from pathlib import Path

from .report import Failure, Skip

PIECES = Path(__file__).resolve().parent / "standins"
DEBIAN = "docker.io/library/debian:bookworm-slim"
CUDA = "docker.io/nvidia/cuda:13.0.2-runtime-ubuntu24.04"
POSTGRES = "docker.io/library/postgres:17-bookworm"


def prepare(engine):
    """Makes the stand-ins that are not there yet."""
    if not engine.has_image(DEBIAN):
        debian(engine)
    update = ["apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update"]
    asked = engine.run("run", "--rm", "--network", "host", DEBIAN, *update, timeout=300)
    if asked.returncode != 0:
        raise Skip(f"the images need packages, and Debian's mirror does not answer: {asked.stderr.strip()[-200:]}")
    for name, folder in [(CUDA, "cuda"), (POSTGRES, "postgres")]:
        if not engine.has_image(name):
            engine("build", "--network", "host", "--tag", name, PIECES / folder, timeout=600)


def debian(engine):
    """Makes Debian's smallest system, as `debian:bookworm-slim` is."""
    root = engine.folder / "debian"
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
    done = subprocess.run(
        ["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True, timeout=900
    )
    if done.returncode != 0:
        raise Skip(f"debootstrap cannot reach a mirror of Debian: {(done.stdout + done.stderr).strip()[-200:]}")
    archive = subprocess.Popen(
        ["tar", "-C", root, "--exclude=./var/cache/apt/*", "--exclude=./usr/share/doc/*", "-c", "."],
        stdout=subprocess.PIPE,
    )
    imported = engine.run("import", "--change", 'CMD ["bash"]', "-", DEBIAN, stdin=archive.stdout, timeout=300)
    archive.stdout.close()
    if archive.wait() != 0 or imported.returncode != 0:
        raise Failure(f"podman import: {imported.stderr.strip()[-200:]}")
    subprocess.run(["rm", "-rf", "--one-file-system", root], check=True)
