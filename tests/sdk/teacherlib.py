"""A stand-in for a teacher: a server with OpenAI's API for chats that follows a rule, fails in all the ways that real ones
do, and keeps a bill."""

import collections
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-of-the-teacher-1234567890"
# Money per million tokens.
PROMPT_PRICE, COMPLETION_PRICE = 150.0, 600.0


class Teacher:
    """Answers the last message of a conversation by `rule`, a function from its text to an answer, or to a pair of an answer
    and a finish reason.

    `faults` is a function from the text and the number of the request for it, from 1, to a status, "cut" for a body that
    breaks off, or None. `seconds` is how long an answer takes. Two requests with the same `idempotency-key` are paid once.
    """

    def __init__(self, rule, faults=lambda text, number: None, seconds=0.0):
        self.rule, self.faults, self.seconds = rule, faults, seconds
        self.asked = collections.Counter()
        self.paid = collections.Counter()
        self.bodies, self.keys, self.answered = [], set(), {}
        self.micros = 0
        self.flying = self.most_flying = 0
        self.lock = threading.Lock()
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                with teacher.lock:
                    teacher.flying += 1
                    teacher.most_flying = max(teacher.flying, teacher.most_flying)
                try:
                    teacher.answer(self)
                except OSError:
                    pass
                finally:
                    with teacher.lock:
                        teacher.flying -= 1

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        if handler.headers["authorization"] != f"Bearer {KEY}":
            return self.send(handler, 401, {"error": {"message": f"Wrong key: {handler.headers['authorization']}"}})
        text = body["messages"][-1]["content"]
        with self.lock:
            self.asked[text] += 1
            number = self.asked[text]
            self.bodies.append(body)
            self.keys.add(handler.headers["idempotency-key"])
        time.sleep(self.seconds)
        fault = self.faults(text, number)
        if isinstance(fault, int):
            return self.send(handler, fault, {"error": {"message": f"Not for {handler.headers['authorization']}"}})
        completion = self.complete(body, text, handler.headers["idempotency-key"])
        self.send(handler, 200, completion, cut=fault == "cut")

    def complete(self, body, text, key):
        """The answer's object; the bill has it once."""
        with self.lock:
            if key and key in self.answered:
                return self.answered[key]
            answer = self.rule(text)
            answer, reason = answer if isinstance(answer, tuple) else (answer, "stop")
            words = answer.split()
            if len(words) > body["max_tokens"]:
                answer, reason = " ".join(words[: body["max_tokens"]]), "length"
            usage = {
                "prompt_tokens": sum(len(message["content"].split()) for message in body["messages"]) + 4,
                "completion_tokens": min(len(words), body["max_tokens"]),
            }
            completion = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": reason}
                ],
                "usage": usage,
            }
            self.paid[text] += 1
            self.micros += cost(usage["prompt_tokens"], usage["completion_tokens"])
            self.answered[key] = completion
            return completion

    def send(self, handler, status, body, cut=False):
        content = json.dumps(body).encode()
        handler.send_response(status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(content)))
        if status == 429:
            handler.send_header("retry-after", "0.05")
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            handler.close_connection = True

    def settings(self, **more):
        """The environment of a server that knows it as `teacher:big`."""
        table = {
            "base_url": self.url,
            "model": "big-model",
            "api_key_env": "TEACHER_KEY",
            "max_tokens": 64,
            "prompt_overhead_tokens": 16,
            **more,
        }
        fields = ", ".join(f"{name} = {json.dumps(value)}" for name, value in table.items())
        price = f"price_per_million = {{ prompt = {PROMPT_PRICE}, completion = {COMPLETION_PRICE} }}"
        return {"ATTUNE_TEACHERS": f"{{ big = {{ {fields}, {price} }} }}", "TEACHER_KEY": KEY}


def cost(prompt_tokens, completion_tokens):
    """Millionths, parts of one rounded up."""
    return -int(-(prompt_tokens * PROMPT_PRICE + completion_tokens * COMPLETION_PRICE) // 1)
