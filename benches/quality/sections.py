"""The data set: which section of Debian a package belongs to, told from its one-line description. Made from the package
lists that `apt-get update` leaves on a machine; the same lists give the same set."""

import hashlib
import json
import random
import subprocess

SECTIONS = ("database", "editors", "fonts", "games", "graphics", "mail", "science", "sound")
# Examples of each section in each part.
PARTS = {"train": 25, "validation": 5, "heldout": 30}
QUESTION = "Which section of Debian does this package belong to? Answer with one word."
SEED = 15
ADVICE = "the data set is made from Debian's package lists: run `apt-get update` on a Debian or Ubuntu machine first"


class NoLists(Exception):
    """There are no package lists, or too few packages in them; the message says what to run."""


def packages(listing):
    """Yields name, source, section and description of each package in the output of `apt-cache dumpavail`."""
    for record in listing.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if line[:1] != " " and ": " in line)
        if {"Package", "Section", "Description"} <= fields.keys():
            source = fields.get("Source", fields["Package"]).split()[0]
            # Outside of main a section is written behind its archive area, as in `universe/games`.
            yield fields["Package"], source, fields["Section"].rsplit("/", 1)[-1], fields["Description"].strip()


def descriptions(found):
    """The descriptions of each section: one package of a source, no text twice."""
    sources, texts, chosen = set(), set(), {section: [] for section in SECTIONS}
    for _, source, section, text in sorted(found):
        if section in chosen and source not in sources and text.casefold() not in texts:
            sources.add(source)
            texts.add(text.casefold())
            chosen[section].append(text)
    return chosen


def chat(text, section):
    """An example as the API takes it."""
    return {"messages": [
        {"role": "system", "content": QUESTION},
        {"role": "user", "content": text},
        {"role": "assistant", "content": section},
    ]}  # fmt: skip


def pair(chat):
    """The same example as a text and its continuation, for models without a chat template."""
    question, description, answer = (message["content"] for message in chat["messages"])
    return {"prompt": f"{question}\n{description}\nSection:", "completion": f" {answer}"}


def pairs(folder):
    """Writes the examples as pairs into files of the same names in a folder of their own, and returns it."""
    (folder / "pairs").mkdir(exist_ok=True)
    for part in PARTS:
        lines = (folder / f"{part}.jsonl").read_text().splitlines()
        made = "".join(json.dumps(pair(json.loads(line))) + "\n" for line in lines)
        (folder / "pairs" / f"{part}.jsonl").write_text(made)
    return folder / "pairs"


def split(chosen):
    """The chats of each part, in mixed order."""
    shuffled = random.Random(SEED)
    parts = {part: [] for part in PARTS}
    for section in SECTIONS:
        texts = shuffled.sample(chosen[section], sum(PARTS.values()))
        for part, count in PARTS.items():
            parts[part] += [chat(text, section) for text in texts[:count]]
            texts = texts[count:]
    for chats in parts.values():
        shuffled.shuffle(chats)
    return parts


def listing():
    """What `apt-cache dumpavail` prints."""
    try:
        return subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as fault:
        raise NoLists(f"{ADVICE} ({fault})") from fault


def write(folder):
    """Writes `train.jsonl`, `validation.jsonl` and `heldout.jsonl`, where they are not there yet, and `origin.json`, which
    is returned: the number of packages and the sum of the files."""
    origin = folder / "origin.json"
    if not origin.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = list(packages(listing()))
        chosen = descriptions(found)
        few = [section for section, texts in chosen.items() if len(texts) < sum(PARTS.values())]
        if few:
            raise NoLists(f"{ADVICE} (too few packages in {', '.join(few)}; {len(found):,} packages in all)")
        sum_of_all = hashlib.sha256()
        for part, chats in split(chosen).items():
            content = "".join(json.dumps(made) + "\n" for made in chats).encode()
            sum_of_all.update(content)
            (folder / f"{part}.jsonl").write_bytes(content)
        origin.write_text(json.dumps({"packages": len(found), "sha256": sum_of_all.hexdigest()}))
    return json.loads(origin.read_text())
