"""Permissions for checkpoints: granted, listed and taken back by the owner, and what they let another organisation do."""

import urllib.parse

import openai
import pytest
from conftest import QUICK, create_job, model_ids, upload, wait_for_end

pytestmark = pytest.mark.timeout(240)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def acme(tenants):
    with tenants.client("acme") as client:
        yield client


@pytest.fixture(scope="module")
def rival(tenants):
    with tenants.client("rival") as client:
        yield client


@pytest.fixture(scope="module")
def checkpoint(acme, tickets):
    """The name of a checkpoint of acme's."""
    job = create_job(acme, upload(acme, tickets[:12]), {**QUICK, "n_epochs": 1}, suffix="shared")
    job = wait_for_end(acme, job.id)
    assert job.status == "succeeded", job.error
    return acme.fine_tuning.jobs.checkpoints.list(job.id).data[0].fine_tuned_model_checkpoint


def permissions(client):
    return client.fine_tuning.checkpoints.permissions


def revoke_all(acme, checkpoint):
    for permission in list(permissions(acme).list(checkpoint)):
        permissions(acme).delete(permission.id, fine_tuned_model_checkpoint=checkpoint)


@pytest.fixture
def clean(acme, checkpoint):
    """No permissions before and after a test."""
    revoke_all(acme, checkpoint)
    yield
    revoke_all(acme, checkpoint)


def ask(client, model):
    return client.chat.completions.create(model=model, messages=HELLO, temperature=0, max_tokens=8)


def test_permission_lets_another_organisation_ask_and_nothing_else(tenants, acme, rival, checkpoint, clean):
    with pytest.raises(openai.NotFoundError):
        ask(rival, checkpoint)
    (permission,) = permissions(acme).create(checkpoint, project_ids=["rival"])
    assert permission.object == "checkpoint.permission"
    assert permission.id.startswith("cp_")
    assert permission.project_id == "rival"
    assert permission.created_at > 1_700_000_000

    assert ask(rival, checkpoint).choices[0].message.content == ask(acme, checkpoint).choices[0].message.content
    assert len(rival.embeddings.create(model=checkpoint, input="Hello").data) == 1
    assert checkpoint in model_ids(rival)
    assert rival.models.retrieve(checkpoint).owned_by == "acme"
    with tenants.http("rival") as http:
        for method, path in [
            ("DELETE", f"/v1/models/{checkpoint}"),
            ("GET", f"/v1/models/{checkpoint}/adapter"),
            ("GET", f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions"),
            ("DELETE", f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions/{permission.id}"),
        ]:
            assert http.request(method, path).status_code == 404, (method, path)
    with pytest.raises(openai.NotFoundError):
        permissions(rival).create(checkpoint, project_ids=["rival"])

    gone = permissions(acme).delete(permission.id, fine_tuned_model_checkpoint=checkpoint)
    assert (gone.id, gone.object, gone.deleted) == (permission.id, "checkpoint.permission", True)
    with pytest.raises(openai.NotFoundError) as fault:
        ask(rival, checkpoint)
    assert fault.value.code == "model_not_found"
    assert checkpoint not in model_ids(rival)
    assert ask(acme, checkpoint)


@pytest.mark.parametrize("how", ["a request", "a look at it"])
def test_a_shared_model_is_listed_once_the_other_organisation_asked_for_it(acme, rival, checkpoint, clean, how):
    permissions(acme).create(checkpoint, project_ids=["rival"])
    assert checkpoint not in model_ids(rival), "nobody can put names into the lists of others"
    if how == "a request":
        assert ask(rival, checkpoint).choices
    else:
        assert rival.models.retrieve(checkpoint).id == checkpoint
    assert checkpoint in model_ids(rival)


def test_a_fine_tune_goes_on_only_from_models_of_its_own_organisation(acme, rival, tickets, checkpoint, clean):
    permissions(acme).create(checkpoint, project_ids=["rival"])
    with pytest.raises(openai.NotFoundError):
        rival.fine_tuning.jobs.create(model=checkpoint, training_file=upload(rival, tickets[:12]))


def test_granting_again_changes_nothing(acme, checkpoint, clean):
    first = permissions(acme).create(checkpoint, project_ids=["a", "b", "a"]).data
    assert [permission.project_id for permission in first] == ["a", "b"]
    again = permissions(acme).create(checkpoint, project_ids=["b", "c"]).data
    assert again[0] == first[1]
    assert [permission.project_id for permission in permissions(acme).list(checkpoint)][0] == "c"


def test_permissions_come_in_pages_both_ways(tenants, acme, checkpoint, clean):
    for number in range(12):
        permissions(acme).create(checkpoint, project_ids=[f"project-{number:02}"])
    names = [f"project-{number:02}" for number in range(12)]

    def listed(**query):
        return [permission.project_id for permission in permissions(acme).list(checkpoint, **query)]

    assert listed() == names[::-1], "page after page"
    assert listed(order="descending", limit=5) == names[::-1]
    assert listed(order="ascending", limit=6) == names
    assert listed(project_id="project-03") == ["project-03"]
    assert listed(project_id="nobody") == []
    with tenants.http("acme") as http:
        path = f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
        first = http.get(path).json()
        assert (first["object"], len(first["data"]), first["has_more"]) == ("list", 10, True)
        assert (first["first_id"], first["last_id"]) == (first["data"][0]["id"], first["data"][-1]["id"])
        rest = http.get(path, params={"after": first["last_id"], "limit": 2}).json()
        assert (len(rest["data"]), rest["has_more"]) == (2, False), "the page ends exactly where the list does"
        nothing = http.get(path, params={"after": "cp_nobody"}).json()
        assert (nothing["data"], nothing["has_more"], nothing["first_id"]) == ([], False, None)


def test_the_checkpoint_may_be_written_in_any_way(tenants, checkpoint, clean):
    with tenants.http("acme") as http:
        for name in (checkpoint, urllib.parse.quote(checkpoint, safe="")):
            for prefix in ("/v1", ""):
                answer = http.get(f"{prefix}/fine_tuning/checkpoints/{name}/permissions")
                assert answer.status_code == 200, answer.text
        for name in ("ft:a/b:acme::x:ckpt-step-1", "ft:a%2Fb:acme::x"):
            answer = http.get(f"/v1/fine_tuning/checkpoints/{name}/permissions")
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found"), answer.text
            assert answer.json()["error"]["param"] == "fine_tuned_model_checkpoint"
        for method, path in [("GET", checkpoint), ("DELETE", f"{checkpoint}/permissions"), ("POST", "permissions")]:
            body = {"project_ids": ["a"]} if method == "POST" else None
            answer = http.request(method, f"/v1/fine_tuning/checkpoints/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url"), answer.text
        assert http.put(f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions").status_code == 405


@pytest.mark.parametrize(
    "body",
    [{}, {"project_ids": []}, {"project_ids": "rival"}, {"project_ids": [""]}, {"project_ids": ["a"] * 51}]
    + [{"project_ids": [1]}, {"project_ids": ["x" * 256]}, {"project_ids": ["a\0b"]}]
    + [{"project_ids": [name]} for name in ("a\u200bb", "\u202eb", "a\u00adb", "a\u2028b", " a", "a\u0378")],
)
def test_a_wrong_grant_is_refused(tenants, checkpoint, body):
    with tenants.http("acme") as http:
        answer = http.post(f"/v1/fine_tuning/checkpoints/{checkpoint}/permissions", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_an_unknown_permission_is_not_found(acme, checkpoint):
    with pytest.raises(openai.NotFoundError) as fault:
        permissions(acme).delete("cp_nobody", fine_tuned_model_checkpoint=checkpoint)
    assert fault.value.param == "permission_id"
    with pytest.raises(openai.NotFoundError):
        permissions(acme).create("ft:demo:acme::nobody", project_ids=["rival"])
