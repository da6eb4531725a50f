"""Models: what is served, by name."""

import openai
import pytest


def test_the_demo_model_is_listed_with_every_required_field(client):
    (demo,) = [model for model in client.models.list() if model.id == "demo"]
    assert demo.object == "model"
    assert demo.created > 0
    assert demo.owned_by


def test_a_model_can_be_retrieved(client):
    assert client.models.retrieve("demo").id == "demo"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as fault:
        client.models.retrieve("ft:demo:nobody::none")
    assert fault.value.code == "model_not_found"


def test_a_base_model_cannot_be_deleted(client):
    with pytest.raises((openai.PermissionDeniedError, openai.NotFoundError, openai.BadRequestError)):
        client.models.delete("demo")
    assert client.models.retrieve("demo").id == "demo"


def test_routes_stand_at_the_root_too(http):
    assert http.get("/models").json() == http.get("/v1/models").json()


def test_an_unknown_route_is_answered_with_an_error_object(http):
    answer = http.get("/v1/nothing-here")
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_answer_carries_a_request_id(client, http):
    assert client.models.list()._request_id
    assert http.get("/v1/models/none").headers["x-request-id"]
