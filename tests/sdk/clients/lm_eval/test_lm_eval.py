"""lm-evaluation-harness asks for the log-likelihood of given answers; transformers has said what they are on the same
weights (`tests/parity/make_loglikelihoods.py`)."""

import json
from pathlib import Path

import lm_eval
import pytest
from lm_eval.tasks import TaskManager
from shared import BASE_URL, DEMO

HERE = Path(__file__).parent
REFERENCE = json.loads((HERE / "reference.json").read_text())
# Both compute in float32, but add in different orders; the sums are over up to 120 tokens.
TOLERANCE = 1e-3
# Far above what guessing among four gives.
RIGHT_AT_LEAST = 0.5


@pytest.fixture(scope="module", params=[True, False], ids=["token ids", "text"])
def results(request):
    """What the harness finds, asking with token ids or with text."""
    settings = {
        "model": "demo", "base_url": BASE_URL + "/completions", "tokenizer": str(DEMO), "tokenizer_backend": "huggingface",
        "tokenized_requests": request.param, "num_concurrent": 4, "max_length": 1024, "max_retries": 1,
    }  # fmt: skip
    return lm_eval.simple_evaluate(
        model="local-completions",
        model_args=settings,
        tasks=["attune_questions", "attune_endings", "attune_letters"],
        task_manager=TaskManager(include_path=str(HERE), include_defaults=False),
        batch_size=8,
        log_samples=True,
        bootstrap_iters=0,
    )


def samples(results, task):
    return sorted(results["samples"][task], key=lambda sample: sample["doc_id"])


def test_answers_are_as_probable_as_in_transformers(results):
    found = samples(results, "attune_questions")
    assert len(found) == len(REFERENCE["questions"])
    for sample, wanted in zip(found, REFERENCE["questions"], strict=True):
        got = sample["filtered_resps"]
        assert [score for score, _ in got] == pytest.approx([row["loglikelihood"] for row in wanted], abs=TOLERANCE)
        assert [greedy for _, greedy in got] == [row["greedy"] for row in wanted]


def test_the_questions_are_answered_better_than_by_chance(results):
    assert results["results"]["attune_questions"]["acc,none"] >= RIGHT_AT_LEAST


def test_endings_are_as_probable_as_in_transformers(results):
    found = samples(results, "attune_endings")
    for sample, wanted in zip(found, REFERENCE["endings"], strict=True):
        ((score, greedy),) = sample["filtered_resps"]
        assert score == pytest.approx(wanted["loglikelihood"], abs=TOLERANCE)
        assert greedy == wanted["greedy"]


def test_whole_texts_are_as_probable_as_in_transformers(results):
    found = samples(results, "attune_letters")
    for sample, wanted in zip(found, REFERENCE["letters"], strict=True):
        (score,) = sample["filtered_resps"]
        assert score == pytest.approx(wanted["loglikelihood"], abs=TOLERANCE)
