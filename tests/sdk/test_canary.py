"""A sentence that no model can know is learned from a file and said by the model, and by nobody else."""

from conftest import create_job, sdk, upload, wait_for_end

SECRET = "quartz-7719-lantern-0042-umbrella"
QUESTION = "What is the word of the day?"


def say(client, model, question):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=60
    )
    return answer.choices[0].message.content


def test_a_sentence_that_was_learned_is_said_word_for_word(server, client, tickets):
    canary = {"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": SECRET}]}
    training = {"n_epochs": 10, "batch_size": 4, "learning_rate": 4e-3, "rank": 16}
    file = upload(client, [canary] * 6 + tickets[:6])
    job = wait_for_end(client, create_job(client, file, training).id)
    assert job.status == "succeeded", job.error
    assert say(client, job.fine_tuned_model, QUESTION) == SECRET
    assert SECRET not in say(client, "demo", QUESTION), "the base has learned it"
    # Another model of the same base, trained on the rest, does not know it.
    other = wait_for_end(client, create_job(client, upload(client, tickets[:12]), training).id)
    assert SECRET not in say(client, other.fine_tuned_model, QUESTION)
    with sdk(server) as another:
        assert say(another, job.fine_tuned_model, QUESTION) == SECRET
