"""Chats for the benchmark: random words of small letters, of which the tokenizer makes a token for each character. The same
seed gives the same chats."""

import json
import random
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Kind:
    """Lengths of chats, in tokens."""

    # The mean is near this.
    mean: int
    shortest: int
    longest: int
    # The spread of the lengths' logarithm.
    spread: float
    # Share of a chat that is the question.
    question: float
    # Steps of a training, so that each kind takes about as long.
    steps: int


KINDS = {
    # A sentence and its class.
    "short": Kind(50, 30, 100, 0.2, 0.95, 50),
    # Mostly short, some long, as real chats are.
    "mixed": Kind(200, 24, 1000, 0.7, 0.6, 30),
    "long": Kind(400, 250, 600, 0.2, 0.6, 10),
}
END = "<|end|>"
# The same tokens for all: no generation prompt, an end after each answer.
TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}" + END + "{% endif %}{% endfor %}"
)


def words(letters, length):
    """A text of `length` characters."""
    text = ""
    while len(text) < length:
        text += "".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(2, 9))) + " "
    return text[:length]


def lengths(kind, count, seed):
    """Tokens of each chat, its end included."""
    letters = random.Random(seed)
    drawn = [letters.lognormvariate(0, kind.spread) for _ in range(count)]
    scale = kind.mean * count / sum(drawn)
    return [round(min(kind.longest, max(kind.shortest, scale * value))) for value in drawn]


def chats(kind, count, seed=1):
    """Chats of one question and one answer."""
    letters = random.Random(seed + 1)
    made = []
    for length in lengths(kind, count, seed):
        question = max(1, round(kind.question * (length - 1)))
        made.append({"messages": [
            {"role": "user", "content": words(letters, question)},
            {"role": "assistant", "content": words(letters, length - 1 - question)},
        ]})  # fmt: skip
    return made


def tokens(chat):
    """Tokens of a chat: its characters, and the end."""
    return sum(len(message["content"]) for message in chat["messages"]) + 1


def write(path: Path, made):
    """The chats as JSON Lines."""
    path.write_text("".join(json.dumps(chat) + "\n" for chat in made), encoding="utf-8")
    return path
