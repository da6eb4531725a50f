"""Chats of mixed length for the benchmark: random words of small letters, of which the tokenizer makes a token for each
character. The same seed gives the same chats."""

import json
import random
from pathlib import Path

# Lengths in tokens: mostly short, some long, as real chats are. The mean is near MEAN.
MEAN, SHORTEST, LONGEST = 200, 24, 1000
# The spread of the lengths' logarithm.
SPREAD = 0.7
# Share of a chat that is the question.
QUESTION = 0.6
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


def lengths(count, seed):
    """Tokens of each chat, its end included."""
    letters = random.Random(seed)
    drawn = [letters.lognormvariate(0, SPREAD) for _ in range(count)]
    scale = MEAN * count / sum(drawn)
    return [round(min(LONGEST, max(SHORTEST, scale * value))) for value in drawn]


def chats(count, seed=1):
    """Chats of one question and one answer."""
    letters = random.Random(seed + 1)
    made = []
    for length in lengths(count, seed):
        question = max(1, round(QUESTION * (length - 1)))
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
