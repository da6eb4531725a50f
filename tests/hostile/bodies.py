"""Bodies and headers made by chance that are large or odd: texts of many kinds of characters, many inputs, deep or wide JSON,
huge or repeated names. Each kind returns a path, a body and headers."""

import json

CHARACTERS = ["1", "a", " ", "\n", "é", "東", "🙂", "\u0000", "ß\u0301", "<|im_end|>", "\u200b", "word "]
CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOKENIZE, DETOKENIZE, JOBS = "/v1/tokenize", "/v1/detokenize", "/v1/fine_tuning/jobs"
SIZES = [1, 100, 10_000, 1_000_000, 7_000_000]


def _text(source):
    size = source.choice(SIZES)
    pieces = source.sample(CHARACTERS, source.choice([1, 1, 2, 5]))
    return ("".join(pieces) * (1 + size // sum(len(piece.encode()) for piece in pieces)))[:size]


def prompts(source):
    """Texts, token ids and many inputs."""
    ids = lambda: [source.randrange(source.choice([2048, 3000]))] * source.choice([1, 500, 1500, 100_000])  # noqa: E731
    count = source.choice([1, 3, 2000, 2049, 300_000])
    value = source.choice(
        [lambda: _text(source), lambda: [_text(source)[: 7_000_000 // min(count, 7)]] * min(count, 7), ids,
         lambda: [ids()[:1500]] * min(count, 2049), lambda: ["a"] * count, lambda: [[1]] * count]
    )()
    path = source.choice([COMPLETIONS, EMBEDDINGS, TOKENIZE, DETOKENIZE])
    if path == DETOKENIZE:
        return path, {"model": "demo", "tokens": ids()}, {}
    if path == TOKENIZE:
        return path, {"model": "demo", "prompt": _text(source), "return_token_strs": source.random() < 0.5}, {}
    body = {"model": "demo", "input" if path == EMBEDDINGS else "prompt": value}
    if path == COMPLETIONS:
        body |= {"max_tokens": 1, "echo": source.random() < 0.3, "logprobs": source.choice([None, 2])}
    return path, body, {}


def messages(source):
    """Conversations that are long, or have long texts or many parts."""
    role = source.choice(["user", "system", "assistant", "tool", "king"])
    count = source.choice([1, 10, 1000, 50_000, 200_000])
    text = _text(source)[: max(1, 7_000_000 // count - 40)]
    content = source.choice([text, [{"type": "text", "text": text[:100]}] * min(50, 1 + 50_000 // count), None])
    return CHAT, {"model": "demo", "messages": [{"role": role, "content": content}] * count, "max_tokens": 1}, {}


def shapes(source):
    """JSON that is deep, wide, has huge or equal names, or is no JSON at all."""
    size = source.choice(SIZES)
    piece = source.choice(["{},", "[],", '"",', "1,", "null,", "-1e9,", '{"a":1},', "[1,2],"])
    wide = "[" + piece * (size // len(piece)) + piece[:-1] + "]"
    opener, closer = source.choice([("[", "]"), ('{"a":', "}")])
    depth = size // (len(opener) + 1)
    name = "k" * size
    value = source.choice([wide, opener * depth + "1" + closer * depth, opener * depth, json.dumps(name), '{"%s":1}' % name])
    field = source.choice(["tools", "messages", "stop", "logit_bias", "response_format", "chat_template_kwargs", "x", name[:5000]])
    more = ('"x":1,' * (size // 6)) if source.random() < 0.2 else ""
    path = source.choice([CHAT, COMPLETIONS, EMBEDDINGS, TOKENIZE, JOBS, "/v1/engines/demo/completions"])
    text = '{"model":"demo",%s"messages":[{"role":"user","content":"x"}],"max_tokens":1,"%s":%s}' % (more, field, value)
    return path, text[: 8 << 20].encode(), {}


def headers(source):
    """Headers that are many, long or odd."""
    count, size = source.choice([(1, 10), (1, 8000), (1, 200_000), (90, 20), (500, 20), (99, 3000)])
    value = source.choice(["x", "é", "\t", ",", "="])
    named = {f"x-{source.choice(['a', 'forwarded', 'stainless'])}-{index}": (value * size).strip() or "x" for index in range(count)}
    odd = source.choice([{}, {"Accept-Encoding": "gzip;q=9" * 50}, {"Origin": "null"}, {"Content-Type": "text/" + "x" * 500},
                         {"Expect": "100-continue"}, {"Cookie": "a=b; " * 1000}])
    return COMPLETIONS, {"model": "demo", "prompt": "x", "max_tokens": 1}, {**named, **odd}
