"""Podman with a storage of its own, so that nothing of the user's is seen or touched, in a network of its own."""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

from .report import Failure, Skip

# Debian's packages of what is needed.
PACKAGES = ["podman", "buildah", "runc", "netavark", "aardvark-dns", "iptables", "iproute2", "debootstrap"]
PROGRAMS = ["podman", "runc", "iptables", "ip", "debootstrap"]
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
# Where all engines of a machine keep the names of containers.
SHARED = Path("/run/containers")
# Fewer than any usual limit: raising one's own takes a capability that not every machine gives.
MOST = 16384


def install():
    """Installs what is missing with apt-get; raises [`Skip`] where that is not possible."""
    if os.geteuid() != 0:
        raise Skip("needs root, to make base images and networks")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing and shutil.which("apt-get") is not None:
        apt = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=60"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 600}
        subprocess.run([*apt, "update"], **quiet)
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for package in PACKAGES:
            subprocess.run([*apt, "install", "-y", "--no-install-recommends", package], env=environment, **quiet)
        missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise Skip(f"{', '.join(missing)}: not installed, and apt-get cannot install it here")


def leave_network():
    """Moves this process, and all containers that it will start, into a network without any other host: ports, names
    and rules there disturb nobody, and end with it."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET | CLONE_NEWNS) != 0:
        raise Skip(f"namespaces are not allowed here: {os.strerror(ctypes.get_errno())}")
    SHARED.mkdir(parents=True, exist_ok=True)
    for command in (
        ["mount", "--make-rprivate", "/"],
        ["mount", "-t", "tmpfs", "tmpfs", SHARED],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)


class Engine:
    """Podman, with everything that it stores below `folder`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        # What podman knows to be void after a restart of the machine.
        runtime = Path("/run/attune-container-check")
        (self.folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{self.folder}/storage"\nrunroot = "{runtime}/storage"\n'
        )
        (self.folder / "containers.conf").write_text(
            "[containers]\n"
            'log_driver = "k8s-file"\n'
            f'default_ulimits = ["nofile={MOST}:{MOST}", "nproc={MOST}:{MOST}"]\n'
            "[engine]\n"
            'runtime = "runc"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
            f'tmp_dir = "{runtime}/libpod"\n'
            "[engine.runtimes]\n"
            f'runc = ["{shutil.which("runc")}"]\n'
            "[network]\n"
            f'network_backend = "netavark"\nnetwork_config_dir = "{self.folder}/networks"\n'
        )
        self.names = SHARED / "networks" / "aardvark-dns" / "aardvark.pid"
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")},
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "BUILDAH_FORMAT": "docker",
        }

    def run(self, *arguments, timeout=120, **options):
        """Runs podman and returns the finished process, whatever its status."""
        return subprocess.run(
            ["podman", *map(str, arguments)],
            env=self.environment, capture_output=True, text=True, errors="replace", timeout=timeout, **options,
        )  # fmt: skip

    def __call__(self, *arguments, **options):
        """Runs podman and returns its output; fails the check if it fails."""
        done = self.run(*arguments, **options)
        if done.returncode != 0:
            said = [line for line in done.stderr.splitlines() if "systemd" not in line]
            raise Failure(f"podman {' '.join(map(str, arguments[:2]))}: {' | '.join(said[-3:])}")
        return done.stdout.strip()

    def has_image(self, name):
        return self.run("image", "exists", name).returncode == 0

    def inspect(self, name):
        """What podman knows of an image or a container."""
        return json.loads(self("inspect", name))[0]

    def address(self, container):
        """The address of a container in its network."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"].values()
        return next(network["IPAddress"] for network in networks)

    def logs(self, container):
        """Standard output and standard error of a container."""
        done = self.run("logs", container)
        return done.stdout + done.stderr

    def is_healthy(self, container):
        """True if the container's own health check passes now. Engines with systemd ask it by themselves."""
        return self.run("healthcheck", "run", container).returncode == 0

    def clean(self):
        """Removes all containers, volumes and networks of this storage, also those that a killed run left."""
        self.run("rm", "--all", "--force", "--volumes", "--time", "0")
        self.run("pod", "rm", "--all", "--force")
        for left in self.run("ps", "--all", "--external", "--quiet").stdout.split():
            self.run("rm", "--force", left)
        self.run("volume", "prune", "--force")
        self.run("network", "prune", "--force")
        # The names' server ends by itself with the last container, but not at once. Outside it may be another engine's.
        with contextlib.suppress(OSError, ValueError):
            if SHARED.is_mount():
                os.kill(int(self.names.read_text()), signal.SIGTERM)
