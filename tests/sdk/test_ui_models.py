"""Models on the page: where they come from and where they are, who may use them, and deleting them."""

import html
import re
from urllib.parse import quote

import adapterlib
import pytest
from conftest import create_job, upload, wait_for_end
from test_ui_session import SCRIPTS, signed_in

HOSTILE = "<script>alert(1)</script>\"'&lt; x"


def place(name):
    """The path of a model's page, as links have it."""
    return "/ui/models/" + quote(name, safe="/-_.:")


@pytest.fixture(scope="module")
def trained(tenants, tickets):
    """A job of acme's that has ended, and was asked once."""
    with tenants.client("acme") as client:
        job = create_job(client, upload(client, tickets[:16]), suffix="shown")
        job = wait_for_end(client, job.id)
        assert job.status == "succeeded"
        answer = client.completions.create(model=job.fine_tuned_model, prompt="Hello", max_tokens=3)
        assert answer.usage.total_tokens > 3
        return job


@pytest.fixture(scope="module")
def acme(tenants):
    with signed_in(tenants.server, tenants.keys["acme"]) as client:
        yield client


@pytest.fixture(scope="module")
def rival(tenants):
    with signed_in(tenants.server, tenants.keys["rival"]) as client:
        yield client


def row(page, name):
    """The row of the list that begins with the model's name."""
    rows = [row for row in page.split("<tr>") if f"<bdi>{html.escape(name)}</bdi>" in row.split("</th>")[0]]
    assert len(rows) == 1, name
    return rows[0]


def test_the_list_has_bases_specialists_and_checkpoints(acme, tenants, trained):
    tenants.http("acme").get("/v1/usage")  # Writes what was used until now.
    answer = acme.get("/ui/models")
    assert answer.status_code == 200 and not SCRIPTS.search(answer.text)
    page = answer.text
    assert "base model" in row(page, "demo") and "always ready" in row(page, "demo")
    own = row(page, trained.fine_tuned_model)
    assert f'href="/ui/fine-tunes/{trained.id}"' in own
    assert 'href="/ui/models/demo"' in own
    assert "ready on the device" in own
    assert own.count("1 request, ") == 2, "of the last hour and day"
    checkpoints = [name for name in re.findall(r"<bdi>([^<]+)</bdi>", page) if name.startswith(trained.fine_tuned_model + ":ckpt")]
    assert checkpoints
    assert "checkpoint" in row(page, checkpoints[0])


def test_a_models_page_says_where_it_comes_from_and_where_it_is(acme, trained):
    page = acme.get(place(trained.fine_tuned_model)).text
    for words in ["fine-tuned", f'href="/ui/fine-tunes/{trained.id}"', 'href="/ui/models/demo"', "Rank", "Leases", "Last hour",
                  "1 request, ", "Checkpoints of its job", ":ckpt-step-", "Who else may use it", "Delete this model"]:
        assert words in page, words
    assert page.count("<h1>") == 1
    base = acme.get("/ui/models/demo").text
    assert "Context" in base and "Delete" not in base and "10.00 USD" in base


def test_others_find_nothing_until_they_may_use_it(acme, rival, tenants, trained):
    name = trained.fine_tuned_model
    path = place(name)
    assert name not in rival.get("/ui/models").text
    assert rival.get(path).status_code == 404
    for form in [{"action": "delete", "sure": "yes"}, {"action": "grant", "organization": "rival"}]:
        assert rival.post(path, data=form).status_code == 404, form
    answer = acme.post(path, data={"action": "grant", "organization": "rival"})
    assert (answer.status_code, answer.headers["location"]) == (303, path)
    shared = rival.get(path)
    assert shared.status_code == 200
    # They see what it is, not what made it, and can do nothing with it.
    for hidden in [trained.id, "Delete", "Who else", "Checkpoints of"]:
        assert hidden not in shared.text, hidden
    assert "who shares it" in shared.text
    assert name not in rival.get("/ui/models").text, "a look accepts no permission"
    assert rival.post(path, data={"action": "delete", "sure": "yes"}).status_code == 404
    page = acme.get(path).text
    permission = re.search(r'name="permission" value="(cp_[^"]+)"', page)[1]
    assert "<bdi>rival</bdi>" in page
    assert acme.post(path, data={"action": "revoke", "permission": permission}).status_code == 303
    assert rival.get(path).status_code == 404


def test_what_a_form_may_not_do_is_said_in_words(acme, trained):
    path = place(trained.fine_tuned_model)
    for form, status in [
        ({"action": "grant", "organization": ""}, 400),
        ({"action": "grant"}, 400),
        ({"action": "nothing"}, 400),
        ({"action": "revoke", "permission": "cp_nothing"}, 404),
        ({"action": "revoke", "permission": "../../../files"}, 404),
        ({"action": "delete"}, 400),
    ]:
        answer = acme.post(path, data=form)
        assert answer.status_code == status, (form, answer.text)
        assert answer.headers["content-type"].startswith("text/html")
    assert acme.post("/ui/models/demo", data={"action": "delete", "sure": "yes"}).status_code == 403
    assert acme.get("/ui/models/nothing").status_code == 404
    assert acme.get(place(HOSTILE)).status_code == 404
    assert "<script>alert" not in acme.get(place(HOSTILE)).text


def test_a_model_is_deleted_only_if_it_is_meant(acme, tenants, tickets):
    with tenants.client("acme") as client:
        job = wait_for_end(client, create_job(client, upload(client, tickets[:16]), suffix="gone").id)
        assert job.status == "succeeded", job.error
        name = job.fine_tuned_model
        assert acme.post(place(name), data={"action": "delete"}).status_code == 400
        assert acme.get(place(name)).status_code == 200
        answer = acme.post(place(name), data={"action": "delete", "sure": "yes"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/ui/models")
        assert acme.get(place(name)).status_code == 404
        assert name not in [model.id for model in client.models.list()]


def test_a_name_that_looks_like_html_is_a_name(tenants):
    """An adapter from elsewhere may have any visible name."""
    folder = adapterlib.put(tenants.server.data_dir / "from-elsewhere" / "one", seed=3)
    with tenants.http("admin") as http:
        loaded = http.post("/v1/load_lora_adapter", json={"lora_name": HOSTILE, "lora_path": folder})
        assert loaded.status_code == 200, loaded.text
    with signed_in(tenants.server, tenants.keys["admin"]) as admin:
        page = admin.get("/ui/models").text
        assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page
        assert "adapter from elsewhere" in page
        path = html.unescape(re.search(r'href="(/ui/models/%3Cscript[^"]+)"', page)[1])
        shown = admin.get(path)
        assert shown.status_code == 200 and "<script>alert" not in shown.text
        assert admin.post(path, data={"action": "delete", "sure": "yes"}).status_code == 303
        assert admin.get(path).status_code == 404


def test_pages_of_the_list_follow_each_other(acme, trained):
    seen, path = [], "/ui/models?limit=1"
    while path:
        page = acme.get(path).text
        seen += re.findall(r'<th scope="row"><a href="[^"]+"><bdi>([^<]+)</bdi>', page)
        newer = re.search(r'href="(/ui/models\?limit=1&amp;after=[^"]+)"', page)
        path = newer and html.unescape(newer[1])
    assert trained.fine_tuned_model in seen and len(seen) == len(set(seen))
