"""A real encoder, all-MiniLM-L6-v2 in the form of sentence-transformers. What sentence-transformers says of the same weights is
in `tests/fixtures/real_files`, made by `tests/parity/make_minilm.py`. The model comes from a Python package
(`tools/real_models.py`) and is no part of the project."""

import base64
import json
import re

import attunelib
import numpy as np
import pytest
import real_models

FIXTURE = attunelib.ROOT / "tests" / "fixtures" / "real_files" / f"{real_models.MINILM.name}.json"
WIDTH, LONGEST = 384, 256
# One f32 computation against another that adds in a different order; a tanh in the GELU, other truncation or padding that is
# attended to are all further off.
NEAR, ANGLE = 1e-5, 1e-7
# What the other texts of a batch may change.
BATCH_MATES = 1e-6
# Berlin is to Germany what Paris is to France, among these.
WORDS = (
    "germany paris france berlin madrid rome london vienna warsaw lisbon athens brussels amsterdam copenhagen stockholm oslo "
    "helsinki dublin prague budapest moscow tokyo beijing ottawa canberra munich hamburg spain italy austria europe german french "
    "banana guitar car"
).split()

pytestmark = pytest.mark.timeout(240)


class Encoder:
    """A server's model: inputs to their vectors. `tokens` are those of the last request."""

    def __init__(self, url):
        self.client, self.tokens = attunelib.Client(url), 0

    def ask(self, **body):
        return self.client.post("/v1/embeddings", {"model": "minilm", **body})

    def __call__(self, inputs, **settings):
        answer = self.ask(input=inputs, **settings)
        assert [item["index"] for item in answer["data"]] == list(range(len(answer["data"])))
        self.tokens = answer["usage"]["prompt_tokens"]
        return np.array([item["embedding"] for item in answer["data"]])

    def refusal(self, **body):
        """The error of a request that must be refused."""
        with pytest.raises(attunelib.ApiError) as fault:
            self.ask(**body)
        assert fault.value.status == 400, fault.value
        return json.loads(fault.value.body)["error"]


@pytest.fixture(scope="module")
def minilm(start_server):
    return Encoder(start_server("--model", f"minilm={real_models.MINILM.fetch()}").url)


@pytest.fixture(scope="module")
def reference():
    """The texts by name, each with its token ids and its vector."""
    entries = json.loads(FIXTURE.read_text(encoding="utf-8"))
    for entry in entries:
        entry["vector"] = np.frombuffer(base64.b64decode(entry["vector"]), "<f4").astype(float)
    return {entry["name"]: entry for entry in entries}


def sendable(reference):
    """The texts that a request may hold as they are: neither empty nor longer than the model takes."""
    return [entry for name, entry in reference.items() if name not in ("empty", "too long")]


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def assert_same(vector, expected, name):
    assert len(vector) == WIDTH
    difference, angle = np.abs(vector - expected).max(), 1 - cosine(vector, expected)
    assert difference <= NEAR and angle <= ANGLE, (name, difference, angle)


def test_texts_have_the_vectors_that_sentence_transformers_gives_them(minilm, reference):
    for entry in sendable(reference):
        (vector,) = minilm([entry["text"]])
        assert minilm.tokens == len(entry["ids"]), entry["name"]
        assert_same(vector, entry["vector"], entry["name"])


def test_token_ids_have_the_same_vectors(minilm, reference):
    """With the special tokens, as the tokenizer gives them; an empty text is nothing but these."""
    assert len(reference["empty"]["ids"]) == 2
    for entry in reference.values():
        (vector,) = minilm([entry["ids"]])
        assert_same(vector, entry["vector"], entry["name"])


def test_the_tokenizer_finds_the_same_tokens(minilm, reference):
    for entry in sendable(reference):
        found = minilm.client.post("/v1/tokenize", {"model": "minilm", "prompt": entry["text"]})["tokens"]
        assert found == entry["ids"], entry["name"]


def test_vectors_have_length_one(minilm, reference):
    vectors = minilm([entry["ids"] for entry in reference.values()])
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6


def test_batch_mates_change_nothing(minilm, reference):
    entries = list(reference.values())
    alone = [minilm([entry["ids"]])[0] for entry in entries]
    together = minilm([entry["ids"] for entry in entries])
    backwards = minilm([entry["ids"] for entry in reversed(entries)] + [entries[0]["ids"]] * 40)
    for number, entry in enumerate(entries):
        assert np.abs(together[number] - alone[number]).max() <= BATCH_MATES, entry["name"]
        assert np.abs(backwards[len(entries) - 1 - number] - alone[number]).max() <= BATCH_MATES, entry["name"]


def test_germany_and_paris_without_france_is_berlin(minilm):
    vectors = dict(zip(WORDS, minilm(WORDS), strict=True))
    wanted = vectors["germany"] + vectors["paris"] - vectors["france"]
    nearest = sorted(WORDS, key=lambda word: -cosine(wanted, vectors[word]))
    assert nearest[0] == "berlin", nearest[:5]
    assert cosine(wanted, vectors["berlin"]) == pytest.approx(0.7691, abs=1e-4)


def test_base64_is_the_same_vectors(minilm, reference):
    texts = [entry["text"] for entry in sendable(reference)]
    answer = minilm.ask(input=texts, encoding_format="base64")
    packed = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in answer["data"]]
    assert np.array_equal(np.array(packed), minilm(texts).astype("f4"))


@pytest.mark.parametrize("dimensions", [1, 64, 383])
def test_fewer_dimensions_are_the_first_ones_at_length_one(minilm, reference, dimensions):
    entry = reference["paragraph"]
    (vector,) = minilm([entry["text"]], dimensions=dimensions)
    first = entry["vector"][:dimensions]
    assert vector.shape == first.shape
    assert np.abs(vector - first / np.linalg.norm(first)).max() <= NEAR


def test_all_dimensions_are_the_vector_and_more_are_refused(minilm, reference):
    entry = reference["short"]
    assert_same(minilm([entry["text"]], dimensions=WIDTH)[0], entry["vector"], "all dimensions")
    assert minilm.refusal(input=[entry["text"]], dimensions=WIDTH + 1)["param"] == "dimensions"


def test_an_empty_text_is_refused_by_its_index(minilm):
    error = minilm.refusal(input=["fine", "fine", ""])
    assert error["param"] == "input"
    assert re.search(r"\b2\b", error["message"]), error


@pytest.mark.parametrize("settings", [{}, {"truncate": False}])
def test_a_text_that_is_too_long_is_refused_by_its_index(minilm, reference, settings):
    error = minilm.refusal(input=["fine", "fine", "fine", reference["too long"]["text"], "fine"], **settings)
    assert error["param"] == "input"
    assert re.search(r"\b3\b", error["message"]) and str(LONGEST) in error["message"], error


def test_a_text_that_is_too_long_is_cut_where_asked(minilm, reference):
    entry = reference["too long"]
    assert len(entry["ids"]) == LONGEST
    vectors = minilm([entry["text"], "What is Deep Learning?"], truncate=True)
    assert minilm.tokens == LONGEST + len(reference["short"]["ids"])
    assert_same(vectors[0], entry["vector"], "cut")
    assert_same(vectors[1], reference["short"]["vector"], "beside it")
