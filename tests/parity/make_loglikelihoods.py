#!/usr/bin/env python3
"""Writes the tasks for lm-evaluation-harness and what transformers thinks of each answer.

    python tests/parity/make_loglikelihoods.py

From the demo model's questions and letters it makes `questions.jsonl` (one right answer among four), `endings.jsonl` (the
last words of a letter's answer) and `letters.jsonl` (whole letters) in `tests/sdk/clients/lm_eval`, and scores them with
transformers in float32: `reference.json` holds the log-likelihood of each answer and whether it is the greedy one. The same
computation in float64 must agree within a twentieth of the tests' tolerance.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import attunelib  # noqa: E402

OUT = ROOT / "tests" / "sdk" / "clients" / "lm_eval"
KINDS = ("trade", "animal", "colour", "hobby", "dish")
QUESTIONS, LETTERS, CHOICES = 40, 24, 4
TOLERANCE = 1e-3


def questions():
    """Questions with four answers that differ in one word; the place of the right one goes round."""
    lines = attunelib.read_jsonl(attunelib.DEMO / "questions.jsonl")
    lines = [line for line in lines if line["fact"].split(":")[0] in KINDS and line["key"] in line["answer"]]
    keys = {kind: sorted({line["key"] for line in lines if line["fact"].startswith(kind + ":")}) for kind in KINDS}
    for number, line in enumerate(lines[:QUESTIONS]):
        others = [key for key in keys[line["fact"].split(":")[0]] if key != line["key"]]
        wrong = [others[(number + step * len(others) // CHOICES) % len(others)] for step in range(CHOICES - 1)]
        label = number % CHOICES
        answers = [line["answer"].replace(line["key"], key) for key in wrong]
        answers.insert(label, line["answer"])
        yield {"question": line["messages"][0]["content"], "choices": answers, "label": label}


def letters():
    return [{"text": line["messages"][0]["content"]} for line in tickets()]


def endings():
    """A question with its answer but for the last word, and that word."""
    lines = attunelib.read_jsonl(attunelib.DEMO / "questions.jsonl")[-LETTERS:]
    for line in lines:
        begin, end = line["answer"].rsplit(" ", 1)
        yield {"context": as_chat(line["messages"][0]["content"]) + begin, "ending": " " + end}


def tickets():
    return attunelib.read_jsonl(attunelib.DEMO / "tickets" / "heldout.jsonl")[:LETTERS]


def as_chat(question):
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


class Scorer:
    """Log-likelihoods as the harness defines them: of the tokens that the whole text has beyond those of its context."""

    def __init__(self):
        self.tokenizer = AutoTokenizer.from_pretrained(attunelib.DEMO)
        self.models = [
            AutoModelForCausalLM.from_pretrained(attunelib.DEMO, dtype=dtype, attn_implementation="eager").eval()
            for dtype in (torch.float32, torch.float64)
        ]

    def encode(self, text):
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def of_answer(self, context, answer):
        # The harness counts white space at the end of a context to the answer.
        bare = context.rstrip()
        answer = context[len(bare) :] + answer
        before = self.encode(bare)
        return self.of_tokens(before, self.encode(bare + answer)[len(before) :])

    def of_text(self, text):
        return self.of_tokens([self.tokenizer.eos_token_id], self.encode(text))

    @torch.no_grad()
    def of_tokens(self, before, after):
        scores = []
        for model in self.models:
            logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
            drawn = logits.double().log_softmax(-1).gather(1, torch.tensor(after)[:, None])
            scores.append((drawn.sum().item(), bool((logits.argmax(-1) == torch.tensor(after)).all())))
        (score, greedy), (exact, _) = scores
        assert abs(score - exact) < TOLERANCE / 20, f"float32 gives {score}, float64 {exact}"
        return {"loglikelihood": round(score, 6), "greedy": greedy}


def main():
    scorer = Scorer()
    tasks = {"questions": list(questions()), "endings": list(endings()), "letters": letters()}
    for name, lines in tasks.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (OUT / f"{name}.jsonl").write_text(text, encoding="utf-8")
    scores = {
        "questions": [
            [scorer.of_answer(as_chat(line["question"]), choice) for choice in line["choices"]]
            for line in tasks["questions"]
        ],
        "endings": [scorer.of_answer(line["context"], line["ending"]) for line in tasks["endings"]],
        "letters": [scorer.of_text(line["text"]) for line in tasks["letters"]],
    }
    rows = ",\n".join(
        f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in rows) + "\n]" for name, rows in scores.items()
    )
    (OUT / "reference.json").write_text("{\n" + rows + "\n}\n", encoding="utf-8")
    right = sum(
        max(range(CHOICES), key=lambda at: row[at]["loglikelihood"]) == line["label"]
        for line, row in zip(tasks["questions"], scores["questions"], strict=True)
    )
    print(f"{right} of {len(tasks['questions'])} questions are right by log-likelihood")


if __name__ == "__main__":
    main()
