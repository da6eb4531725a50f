#!/usr/bin/env python3
"""Writes `tests/fixtures/graders_reference.json`: pairs of texts with the scores that the packages give them whose metrics
graders use.

    python3 -m venv .venv-graders
    .venv-graders/bin/pip install -r tests/parity/requirements-graders.txt
    .venv-graders/bin/python tests/parity/make_graders.py

`src/graders/metrics/tests.rs` compares. nltk's METEOR asks the corpus WordNet for synonyms; here it gets an empty one, so that
words match exactly or by their stems alone, as in Attune. GLEU is computed over sacrebleu's tokens, as BLEU is.
"""

import json
import random
import string
from pathlib import Path

from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rapidfuzz import fuzz, utils
from rouge_score import rouge_scorer
from sacrebleu import sentence_bleu
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

OUT = Path(__file__).resolve().parents[1] / "fixtures" / "graders_reference.json"
ROUGE = rouge_scorer.RougeScorer([f"rouge{n}" for n in range(1, 6)] + ["rougeL"], use_stemmer=False)
TOKENIZE = Tokenizer13a()

WRITTEN = [
    ("", ""),
    ("", "reference"),
    ("text", ""),
    (" \t\n", "  "),
    ("...", "!?"),
    ("a", "a"),
    ("a", "b"),
    ("A", "a"),
    ("the the the the the the the", "the cat is on the mat"),
    ("the cat is on the mat", "the the the the the the the"),
    ("the cat is on the mat", "the cat is on the mat"),
    ("on the mat is the cat", "the cat is on the mat"),
    ("The Cat sat.", "the cat sat"),
    ("It costs $1,234.50, i.e. 3-4 times more.", "It costs 1,234.50 dollars, i.e. 3 - 4 times more."),
    ("He said: \"it's &quot;fine&quot; &amp; good\"", "He said: \"it's \"fine\" & good\""),
    ("multi-\nline text\nwith breaks", "multiline text with breaks"),
    ("a <skipped> b", "a b"),
    ("end.", "end ."),
    ("1.5", "1,5"),
    ("x.y.z,1.2.3", "x . y . z , 1.2.3"),
    ("running runner runs ran easily fairly", "run running runs ran easy fair"),
    ("the flies died while the spies tried skies", "fly die while spy try sky"),
    ("generalizations relational conditional rationally", "generalize relation condition rational"),
    ("hopping hoped hoping controlling failing filing", "hop hope hopes control fail file"),
    ("agreed feed sized fizzed troubled conflated", "agree feeds size fizz trouble conflate"),
    ("happiness goodness usefulness formality ability", "happy good useful formal able"),
    ("enjoy enjoyment enjoying sky spy by syzygy", "enjoys enjoyable joy skies spied buys"),
    ("technology analogies geologically apology", "technologies analogy geology apologies"),
    ("innings dying lying tying news proceed", "inning die lie tie new proceeds"),
    ("electricity electrical electric electriciti", "electric electrically electricity"),
    ("adoption adjustable replacement dependent", "adopt adjust replace depend"),
    ("Straße und Äpfel", "STRASSE UND ÄPFEL"),
    ("Ελλάδα ΣΟΦΟΣ", "ελλάδα σοφος"),
    ("Привет, мир!", "привет мир"),
    ("東京は日本の首都です。", "日本の首都は東京です。"),
    ("नमस्ते दुनिया", "नमस्ते विश्व"),
    ("مرحبا بالعالم", "مرحبا يا عالم"),
    ("naïve café", "naive cafe"),
    ("cafe\u0301", "café"),
    ("😀 smile 👩\u200d👧", "smile 😀"),
    ("İstanbul ISPARTA", "istanbul ısparta"),
    ("ﬁne ½ ² Ⅷ", "fine 1/2 2 VIII"),
    ("snake_case_name camelCase", "snake case name camel case"),
    ("zero\u200bwidth and no\u00a0break", "zero width and no break"),
    ("a\x1cb\x1fc", "a b c"),
    ("tab\tseparated\tvalues", "tab separated values"),
    ("def f(x):\n    return x ** 2\n", "def f(y):\n    return y * y\n"),
    ('{"answer": 42, "unit": "km"}', '{"answer": 42.0, "unit": "km"}'),
    ("yes", "Yes, because the train was late and nobody had told the passengers about it before noon."),
    ("needle", "hay hay hay needl hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay hay"),
    ("abcdefgh", "abcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefgh"),
    ("abcdefgh", "abcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghabcdefghz"),
    ("fuzzy wuzzy was a bear", "wuzzy fuzzy was a bear"),
    ("fuzzy was a bear", "fuzzy fuzzy was a bear"),
    ("a b c d", "d c b a"),
    ("one two three four five six seven", "one two three four five"),
    ("new york mets vs atlanta braves", "atlanta braves vs new york mets"),
    ("x" * 64, "x" * 65),
    ("xy" * 70, "yx" * 100),
    ("word " * 40, "word " * 3),
]


def drawn():
    """Pairs of drawn texts, some of which are the other one with words changed."""
    draw = random.Random(7)
    words = (
        "the a of to train trains training trained late station people person city cities was were is not and quick quickly "
        "brown fox jumps jumped lazy dog dogs 12 3.5 3,5 x-ray it's e.g. Berlin Zürich naïve смысл 日本 don't (so) [x] & % - _"
    ).split()
    letters = string.ascii_lowercase + "    äß.,"
    while True:
        kind = draw.randrange(4)
        one = [draw.choice(words) for _ in range(draw.choice([1, 3, 8, 20, 60, 120]))]
        if kind == 0:
            other = [draw.choice(words) for _ in range(draw.choice([1, 4, 9, 30, 90]))]
        elif kind == 1:
            other = [draw.choice(words) if draw.random() < 0.2 else word for word in one if draw.random() < 0.9]
        elif kind == 2:
            other = draw.sample(one, len(one))
        else:
            text = "".join(draw.choice(letters) for _ in range(draw.choice([2, 10, 63, 64, 65, 130, 200])))
            cut = draw.randrange(len(text))
            yield text, text[cut:] + "".join(draw.choice(letters) for _ in range(draw.choice([0, 5, 70, 300])))
            continue
        yield " ".join(one), " ".join(other)


class NoSynonyms:
    """Stands for WordNet."""

    def synsets(self, word):
        return []


def scores(text, reference):
    rouge = ROUGE.score(reference, text)
    return {
        "fuzzy_match": fuzz.WRatio(text, reference, processor=utils.default_process) / 100,
        "bleu": sentence_bleu(text, [reference]).score / 100,
        "gleu": sentence_gleu([TOKENIZE(reference.rstrip()).split()], TOKENIZE(text.rstrip()).split()),
        "meteor": single_meteor_score(reference.split(), text.split(), wordnet=NoSynonyms()),
        **{f"rouge_{n}": rouge[f"rouge{n}"].fmeasure for n in range(1, 6)},
        "rouge_l": rouge["rougeL"].fmeasure,
    }


def main():
    pairs = list(WRITTEN)
    further = drawn()
    while len(pairs) < 260:
        pairs.append(next(further))
    lines = [
        json.dumps({"text": text, "reference": reference, "scores": scores(text, reference)}, ensure_ascii=False)
        for text, reference in pairs
    ]
    OUT.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
