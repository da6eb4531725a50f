"""Training on preferences: OpenAI's method `dpo`, from a file of pairs to a model."""

import math

import openai
import pytest
from conftest import QUICK, events, upload, wait_for_end

pytestmark = pytest.mark.timeout(240)


def pairs(tickets):
    """Letters with their own ticket as the preferred answer and the next letter's as the other one."""
    return [
        {
            "input": {"messages": letter["messages"][:1], "tools": [], "parallel_tool_calls": True},
            "preferred_output": letter["messages"][1:],
            "non_preferred_output": other["messages"][1:],
        }
        for letter, other in zip(tickets, tickets[1:])
    ]


def create(client, training_file, settings, **more):
    method = {"type": "dpo", "dpo": {"hyperparameters": settings}}
    return client.fine_tuning.jobs.create(model="demo", training_file=training_file, method=method, seed=7, **more)


@pytest.fixture(scope="module")
def finished(client, tickets, heldout):
    settings = {**QUICK, "learning_rate": 5e-4, "beta": 0.2}
    held_out = upload(client, pairs(heldout[:6]))
    job = wait_for_end(client, create(client, upload(client, pairs(tickets[:25])), settings, validation_file=held_out).id)
    assert job.status == "succeeded", job.error
    return job


def test_a_job_says_that_it_trains_on_preferences(http, finished):
    job = http.get(f"/v1/fine_tuning/jobs/{finished.id}").json()
    assert job["method"]["type"] == "dpo"
    assert "supervised" not in job["method"]
    settings = job["method"]["dpo"]["hyperparameters"]
    assert settings["beta"] == 0.2
    assert "auto" not in settings.values()


def test_its_loss_begins_at_ln_2_and_its_rewards_rise(client, finished):
    metrics = [event.data for event in events(client, finished.id) if event.type == "metrics"]
    assert metrics[0]["train_loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert metrics[0]["train_reward_margin"] == 0
    assert metrics[-1]["train_reward_margin"] > 0
    assert metrics[-1]["valid_reward_accuracy"] > 0.5


def test_its_model_answers(client, finished, heldout):
    answer = client.chat.completions.create(
        model=finished.fine_tuned_model, messages=heldout[0]["messages"][:1], max_tokens=10
    )
    assert answer.choices[0].message.content


def test_texts_may_be_compared_too(client, tickets):
    lines = [
        {"prompt": f"{number}:", "chosen": f" {number + 1}", "rejected": f" {number - 1}"} for number in range(1, 11)
    ]
    job = wait_for_end(client, create(client, upload(client, lines), {**QUICK, "n_epochs": 1}).id)
    assert job.status == "succeeded", job.error
    assert job.method.dpo.hyperparameters.beta == 0.1


@pytest.mark.parametrize(
    ("settings", "param"),
    [({"beta": 0}, "beta"), ({"beta": 3}, "beta"), ({"prompt_loss_weight": 0.1}, "prompt_loss_weight")],
)
def test_a_wrong_setting_is_named(client, tickets, settings, param):
    with pytest.raises(openai.BadRequestError) as fault:
        create(client, upload(client, pairs(tickets[:11])), settings)
    assert fault.value.param == param


def test_answers_are_no_preferences(client, tickets):
    job = wait_for_end(client, create(client, upload(client, tickets[:10]), QUICK).id)
    assert (job.status, job.error.param) == ("failed", "training_file")
    assert "Lines 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10 are no preference pair" in job.error.message
