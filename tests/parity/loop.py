"""What the checks of a whole loop have in common: an adapter trained through a real server, what the server answers with it,
and the files that it hands out."""

import io
import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import attunelib  # noqa: E402

LETTERS = 100
TOKENS = 80
# Both compute in float32, but they add in different orders, so that a rare tie between two tokens may fall differently.
AGREE_AT_LEAST = 0.95


def letters():
    """Conversations of one held-out letter each."""
    lines = attunelib.read_jsonl(attunelib.DEMO / "tickets" / "heldout.jsonl")[:LETTERS]
    return [line["messages"][:1] for line in lines]


def train(client):
    """A finished fine-tuned model's name."""
    lines = (attunelib.DEMO / "tickets" / "train.jsonl").read_bytes().splitlines(keepends=True)[:200]
    training_file = client.upload("letters.jsonl", b"".join(lines))
    hyperparameters = {"n_epochs": 1, "batch_size": 8, "learning_rate": 2e-3, "rank": 8, "alpha": 16}
    job = attunelib.Job(client, client.post("/v1/fine_tuning/jobs", {
        "model": "demo", "training_file": training_file["id"], "suffix": "parity",
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }))
    while not job.is_over:
        job.refresh()
        for event in job.new_events():
            print(" ", event["message"], flush=True)
    if job.state["status"] != "succeeded":
        raise attunelib.ServerError(f"the training job ended as {job.state}")
    return job.state["fine_tuned_model"]


def serve(binary, letters, folder):
    """Trains and asks the server. Its answers, and where below `folder` the adapter's files are."""
    data_dir = attunelib.data_folder()
    try:
        with attunelib.Server(binary, data_dir) as server:
            client = attunelib.Client(server.url)
            model = train(client)
            archive = client.fetch("GET", f"/v1/models/{model}/adapter")
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                tar.extractall(folder, filter="data")
            (config,) = Path(folder).rglob("adapter_config.json")
            with ThreadPoolExecutor(8) as pool:
                return list(pool.map(lambda letter: client.chat(model, letter, max_tokens=TOKENS), letters)), config.parent
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)


def same(letters, ours, theirs, whose):
    """The share of equal answers; prints those that differ."""
    differing = [(letter, got, want) for letter, got, want in zip(letters, ours, theirs, strict=True) if got != want]
    for letter, got, want in differing:
        print(f"{letter[0]['content']}\n  attune: {got}\n  {whose}: {want}")
    share = 1 - len(differing) / len(letters)
    print(f"{share:.0%} of {len(letters)} answers are the same as {whose}'s")
    return share


def check(binary, elsewhere):
    """The exit status of a check of the program `binary`: `elsewhere` names other programs, with what each of them answers to
    letters with the adapter in a folder, `folder` being one for files of its own."""
    asked = letters()
    with tempfile.TemporaryDirectory() as folder:
        served, adapter = serve(binary, asked, folder)
        theirs = {whose: answers(asked, adapter, Path(folder)) for whose, answers in elsewhere.items()}
    shares = [same(asked, served, answers, whose) for whose, answers in theirs.items()]
    return 0 if min(shares) >= AGREE_AT_LEAST else 1
