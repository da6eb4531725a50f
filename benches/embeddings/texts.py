"""What the benchmark embeds and trains on: texts of mixed lengths, cut from a text of this repository, and pairs that belong
together, from the machine's lists of Debian's packages."""

import hashlib
import itertools
import json
import math
import random
import statistics
import sys
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "quality"))
import sections  # noqa: E402

SOURCE = HERE.parents[1] / "tests" / "fixtures" / "real_files" / "text.txt"
# The lengths of texts in tokens, special ones included: lognormal, with this mean and this longest of all.
COUNT, MEAN, LONGEST = 192, 43.7, 164
# Tokens of a short query.
SHORT = (5, 16)
# Pairs to learn from, and held-out ones.
LEARNED, HELD_OUT = 1600, 400


def lengths():
    """Evenly spread quantiles of the lognormal distribution, in mixed order."""
    normal = statistics.NormalDist()
    quantiles = [normal.inv_cdf((number + 0.5) / COUNT) for number in range(COUNT)]

    def drawn(spread):
        return [math.exp(spread * quantile) for quantile in quantiles]

    def longest(spread):
        return MEAN * max(drawn(spread)) / statistics.mean(drawn(spread))

    low, high = 0.1, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if longest(middle) < LONGEST else (low, middle)
    scale = MEAN / statistics.mean(drawn(low))
    found = [round(scale * value) for value in drawn(low)]
    random.Random(1).shuffle(found)
    return found


class Texts:
    """Makes texts of wanted lengths in the tokens of a model."""

    def __init__(self, model):
        self.tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.words = SOURCE.read_text(encoding="utf-8").split()
        # A tokenizer of this family never joins words, so their tokens add up.
        self.lengths = [len(encoding.ids) for encoding in self.tokenizer.encode_batch(self.words, add_special_tokens=False)]
        self.special = self.tokens("")

    def tokens(self, text):
        return len(self.tokenizer.encode(text).ids)

    def of(self, tokens, draw):
        """Words from somewhere in the source, as many as fit into `tokens`."""
        places = itertools.count(draw.randrange(len(self.words)))
        chosen, room = [], tokens - self.special
        for place in places:
            room -= self.lengths[place % len(self.words)]
            if room < 0 and chosen:
                return " ".join(chosen)
            chosen.append(self.words[place % len(self.words)])

    def mixed(self, seed):
        """Texts of all lengths."""
        draw = random.Random(seed)
        return [self.of(tokens, draw) for tokens in lengths()]

    def queries(self, count, seed):
        """Short texts."""
        draw = random.Random(seed)
        return [self.of(draw.randint(*SHORT), draw) for _ in range(count)]


def pairs():
    """The name of a package and its description in one line, for packages of different sources: those to learn from, and the
    held-out ones."""
    sources, texts, found = set(), set(), []
    for name, source, _, text in sorted(sections.packages(sections.listing())):
        if source not in sources and text.casefold() not in texts:
            sources.add(source)
            texts.add(text.casefold())
            found.append({"anchor": name, "positive": text})
    if len(found) < LEARNED + HELD_OUT:
        raise sections.NoLists(f"{sections.ADVICE} (only {len(found):,} packages)")
    chosen = random.Random(sections.SEED).sample(found, LEARNED + HELD_OUT)
    return chosen[:LEARNED], chosen[LEARNED:]


def write_pairs(path, lines):
    """Writes pairs as the API takes them; returns their SHA-256, for the report."""
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()
