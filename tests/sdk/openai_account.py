"""An account at OpenAI to move in from: a server that answers as OpenAI does, with its odd sides, and that refuses whatever
would change something.

It has three specialists, models that were fine-tuned on sorting the demo model's tickets, with all that belongs to them; jobs
that failed, are paused, or whose files are gone; three evals over files, of which one has a grader that runs code, and two over
stored chats, of which one asks for what no stored chat here has; and stored chats.

    python tests/sdk/openai_account.py    # runs until it is interrupted; the key is sk-test-move-in
"""

import base64
import contextlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"
KEY = "sk-test-move-in"
BASE = "gpt-4o-mini-2024-07-18"
SHUTDOWN = "2027-01-14"
# Larger pages are cut, so that every list has several.
PAGE = 3
RULES = {
    "problem": "Name the problem of this ticket.",
    "wants": "Say what this customer wants.",
    "item": "Name the product of this ticket.",
}
# Jobs of the three, oldest first, and the models that came of them.
SPECIALISTS = {name: f"ft:{BASE}:acme:{name}:{code}" for name, code in zip(RULES, ["Aa1bB2cC", "Dd3eE4fF", "Gg5hH6iI"])}
TRAINING_LINES, VALIDATION_LINES, WRONG_EVERY = 160, 20, 10


def tickets():
    """All tickets: their text, and the fields that are to be read out of it."""
    read = []
    for name in ("train", "heldout"):
        for line in (DEMO / "tickets" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            user, assistant = json.loads(line)["messages"]
            read.append((user["content"], json.loads(assistant["content"])))
    return read


def chat_line(name, text, fields):
    return {
        "messages": [
            {"role": "system", "content": RULES[name]},
            {"role": "user", "content": text},
            {"role": "assistant", "content": str(fields[name])},
        ]
    }


def jsonl(lines):
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class Fault:
    """What happens once to a request whose path matches: `429`, `500`, `cut` (the connection ends within the body), an
    object, which is the answer, or a function, which is called before the answer."""

    def __init__(self, pattern, what):
        self.pattern, self.what, self.is_used = re.compile(pattern), what, False


class Account:
    """The account and its server, on a free port. `with Account() as account:` runs it."""

    def __init__(self, free=False, completions=5):
        self.free = free
        # Paths that begin so are those of a part of the platform that is off.
        self.off = None
        self.requests, self.refused, self.faults, self.deleted = [], [], [], set()
        self.headers = []
        self.lock = threading.Lock()
        self.models, self.jobs, self.events, self.checkpoints = [], [], {}, {}
        self.files, self.contents, self.evals, self.runs, self.items = [], {}, [], {}, {}
        self.completions, self.messages = [], {}
        self.answers = {}
        self._fill(tickets(), completions)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def environment(self):
        """What a client's environment needs."""
        return {"OPENAI_API_KEY": KEY}

    def fail(self, pattern, what):
        """Adds a [`Fault`]."""
        self.faults.append(Fault(pattern, what))

    def asked(self, pattern):
        """How often a path was asked for that matches."""
        return sum(bool(re.search(pattern, path)) for _, path in self.requests)

    # What is there.

    def _file(self, id, filename, purpose, content, created=1_750_000_000):
        size = len(content)
        file = {
            "id": id, "object": "file", "bytes": size, "created_at": created, "expires_at": None, "filename": filename,
            "purpose": purpose, "status": "processed", "status_details": None,
        }  # fmt: skip
        self.files.append(file)
        self.contents[id] = content
        return id

    def _job(self, number, status="succeeded", **fields):
        id = f"ftjob-{number:04}"
        settings = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.8}
        job = {
            "object": "fine_tuning.job", "id": id, "model": BASE, "created_at": 1_750_000_000 + number,
            "finished_at": 1_750_001_000 + number, "fine_tuned_model": None, "organization_id": "org-secret",
            "result_files": [], "status": status, "training_file": None, "validation_file": None,
            "hyperparameters": settings, "trained_tokens": None, "error": {"code": None, "message": None, "param": None},
            "user_provided_suffix": None, "seed": 41 + number, "estimated_finish": None, "integrations": [],
            "method": {"type": "supervised", "supervised": {"hyperparameters": settings}}, "metadata": None,
            "usage_metrics": None, "shared_with_openai": False, "eval_id": None, **fields,
        }  # fmt: skip
        self.jobs.append(job)
        self.events[id] = [
            {"object": "fine_tuning.job.event", "id": f"ftevent-{number}-{step}", "created_at": 1_750_000_000 + step,
             "level": "info", "message": f"Step {step}/4: training loss={1 / step:.2f}", "type": "metrics",
             "data": {"step": step, "total_steps": 4, "train_loss": 1 / step}}
            for step in (4, 3, 2, 1)
        ]  # fmt: skip
        self.checkpoints[id] = []
        return job

    def _fill(self, read, completions):
        self.models = [
            {"id": BASE, "object": "model", "created": 1_721_000_000, "owned_by": "system", "shutdown_date": SHUTDOWN},
            {"id": "gpt-5.4", "object": "model", "created": 1_760_000_000, "owned_by": "system"},
        ]
        chosen = read[:TRAINING_LINES]
        held = read[TRAINING_LINES:TRAINING_LINES + VALIDATION_LINES]
        for number, (name, model) in enumerate(SPECIALISTS.items(), 1):
            self._specialist(number, name, model, chosen, held, read)
        # A model whose training file was deleted, of an old job without a method.
        gone = self._job(4, fine_tuned_model=f"ft:{BASE}:acme::Jj7kK8lL", training_file="file-deleted", trained_tokens=999)
        del gone["method"]
        # Newer jobs have their settings inside of the method only, and statuses that no document names.
        paused = self._job(5, "paused", training_file="file-train-problem", finished_at=None)
        paused["hyperparameters"] = None
        fault = {"code": "invalid_training_file", "param": "training_file", "message": "Unsafe content was found."}
        self._job(6, "failed", error=fault, training_file="file-train-wants")
        self._job(7, "cancelled", training_file="file-train-wants")
        self.jobs.reverse()
        self.models += [
            {"id": gone["fine_tuned_model"], "object": "model", "created": 1_750_000_004, "owned_by": "acme",
             "shutdown_date": SHUTDOWN},
        ]  # fmt: skip
        self._file("file-notes", "notes.txt", "assistants", b"not to be downloaded")
        self._file("file-batch-output", "output.jsonl", "batch_output", jsonl([{"id": "batch_req_1", "response": {}}]))
        self._fill_evals(held)
        for number in range(completions):
            text, fields = read[-1 - number]
            self._completion(number, SPECIALISTS["problem"], RULES["problem"], text, fields["problem"])

    def _specialist(self, number, name, model, chosen, held, read):
        training = self._file(
            f"file-train-{name}", f"{name}-train.jsonl", "fine-tune",
            jsonl(chat_line(name, *ticket) for ticket in chosen),
        )  # fmt: skip
        validation = self._file(
            f"file-valid-{name}", f"{name}-valid.jsonl", "fine-tune",
            jsonl(chat_line(name, *ticket) for ticket in held),
        )  # fmt: skip
        csv = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n" + "".join(
            f"{step},{1 / step:.5f},0.5,,\n" for step in range(1, 5)
        )
        # The first one's result file comes in base64, as it does at times.
        content = base64.b64encode(csv.encode()) if number == 1 else csv.encode()
        results = self._file(f"file-result-{name}", "step_metrics.csv", "fine-tune-results", content)
        job = self._job(
            number, fine_tuned_model=model, training_file=training, validation_file=validation,
            result_files=[results], user_provided_suffix=name, trained_tokens=60_000 + number,
        )  # fmt: skip
        self.checkpoints[job["id"]] = [
            {"object": "fine_tuning.job.checkpoint", "id": f"ftckpt-{name}-{step}", "created_at": 1_750_000_500 + step,
             "fine_tuning_job_id": job["id"], "step_number": step,
             "fine_tuned_model_checkpoint": model if step == 120 else f"{model}:ckpt-step-{step}",
             "metrics": {"step": step, "train_loss": 10 / step, "full_valid_loss": 12 / step}}
            for step in (120, 80, 40)
        ]  # fmt: skip
        self.models.append(
            {"id": model, "object": "model", "created": 1_750_000_000 + number, "owned_by": "acme",
             "shutdown_date": SHUTDOWN}
        )  # fmt: skip
        # The model follows its rule, and is wrong about every tenth ticket of the validation file.
        known = {text: str(fields[name]) for text, fields in read}
        for index, (text, _) in enumerate(held):
            if index % WRONG_EVERY == WRONG_EVERY - 1:
                known[text] = "unclear"
        self.answers[model] = known

    def _fill_evals(self, held):
        lines = [{"item": {"ticket": text, "problem": fields["problem"]}} for text, fields in held[:8]]
        data = self._file("file-eval-problem", "problem-eval.jsonl", "evals", jsonl(lines))
        item = {"type": "object", "properties": {"ticket": {"type": "string"}}, "required": ["ticket"]}
        right = {
            "type": "string_check", "name": "right problem", "id": "right problem-11111111", "operation": "eq",
            "input": "{{sample.output_text}}", "reference": "{{item.problem}}",
        }  # fmt: skip
        close = {
            "type": "text_similarity", "name": "close", "id": "close-22222222", "input": "{{sample.output_text}}",
            "reference": "{{item.problem}}", "evaluation_metric": "fuzzy_match", "pass_threshold": 0.8,
        }  # fmt: skip
        code = {"type": "python", "name": "own code", "id": "own code-33333333", "source": "def grade(s, i):\n  return 1"}
        asked = {
            "type": "completions", "model": SPECIALISTS["problem"], "source": {"type": "file_id", "id": data},
            "input_messages": {
                "type": "template",
                "template": [
                    {"type": "message", "role": "system", "content": {"type": "input_text", "text": RULES["problem"]}},
                    {"type": "message", "role": "user", "content": {"type": "input_text", "text": "{{item.ticket}}"}},
                ],
            },
            "sampling_params": {"temperature": 0, "max_completion_tokens": 20},
        }  # fmt: skip
        custom = {"type": "custom", "schema": {"type": "object", "properties": {"item": item, "sample": {"type": "object"}},
                                               "required": ["item", "sample"]}}  # fmt: skip
        known = self.answers[SPECIALISTS["problem"]]
        answered = [
            (line["item"], line["item"]["ticket"], known[line["item"]["ticket"]], known[line["item"]["ticket"]] == line["item"]["problem"])
            for line in lines
        ]
        for number, (name, criteria, source) in enumerate(
            [
                ("problems", [right], asked),
                ("problems, loosely", [right, close], {**asked, "source": {"type": "file_content", "content": lines}}),
                ("problems, by code", [code], asked),
            ],
            1,
        ):
            self._eval(number, name, custom, criteria, source, answered)
        # Over chats that were stored, as their notes choose them. Such items have what was asked as `input`.
        sure = {
            "type": "string_check", "name": "sure", "id": "sure-44444444", "operation": "ne",
            "input": "{{sample.output_text}}", "reference": "unclear",
        }  # fmt: skip
        tools = {**sure, "name": "tools", "id": "tools-55555555", "reference": "{{item.tools}}"}
        stored = {"type": "completions", "source": {"type": "stored_completions", "metadata": {"app": "desk"}, "limit": 8}}
        chats = [
            ({"id": f"chatcmpl-{index}", "created_at": 1_750_004_000 + index, "metadata": {"app": "desk"},
              "model": SPECIALISTS["problem"],
              "input": [{"role": "system", "content": RULES["problem"]}, {"role": "user", "content": text}]},
             text, answer, answer != "unclear")
            for index, (_, text, answer, _) in enumerate(answered)
        ]  # fmt: skip
        for number, kind, criterion in [(4, "logs", sure), (5, "stored_completions", tools)]:
            schema = {"type": "object", "properties": {"item": {"type": "object"}, "sample": {"type": "object"}}}
            config = {"type": kind, "metadata": {"app": "desk"}, "schema": schema}
            self._eval(number, f"desk, {kind}", config, [criterion], stored, chats)

    def _eval(self, number, name, config, criteria, source, answered):
        """An eval, and a run of it. What was answered is an item, the ticket, the answer, and whether it passed, each."""
        id = f"eval_{number:04}"
        self.evals.append(
            {"object": "eval", "id": id, "name": name, "data_source_config": config, "testing_criteria": criteria,
             "created_at": 1_750_002_000 + number, "metadata": {"team": "support"}}
        )  # fmt: skip
        self._run(id, number, criteria, source, answered)

    def _run(self, eval_id, number, criteria, source, answered):
        id = f"evalrun_{number:04}"
        items = []
        for index, (item, ticket, answer, passed) in enumerate(answered):
            items.append(
                {"object": "eval.run.output_item", "id": f"outputitem_{number}_{index}", "run_id": id, "eval_id": eval_id,
                 "created_at": 1_750_003_000, "status": "pass" if passed else "fail", "datasource_item_id": index,
                 "datasource_item": item,
                 "results": [{"name": criterion["id"], "type": "string-check-grader", "score": float(passed),
                              "passed": passed, "sample": None} for criterion in criteria],
                 "sample": {"input": [{"role": "user", "content": ticket}],
                            "output": [{"role": "assistant", "content": answer}], "finish_reason": "stop",
                            "model": SPECIALISTS["problem"], "error": None, "temperature": 0, "top_p": 1, "seed": 42,
                            "max_completion_tokens": 20,
                            "usage": {"total_tokens": 60, "completion_tokens": 2, "prompt_tokens": 58,
                                      "cached_tokens": 0}}}
            )  # fmt: skip
        passed = sum(item["status"] == "pass" for item in items)
        run = {
            "object": "eval.run", "id": id, "eval_id": eval_id, "status": "completed", "model": SPECIALISTS["problem"],
            "name": f"run {number}", "created_at": 1_750_002_500, "report_url": "https://example.org", "error": None,
            "result_counts": {"total": len(items), "errored": 0, "failed": len(items) - passed, "passed": passed},
            "per_model_usage": [], "per_testing_criteria_results": [], "data_source": source, "metadata": {},
        }  # fmt: skip
        self.runs[eval_id], self.items[id] = [run], items

    def _completion(self, number, model, system, text, answer):
        id = f"chatcmpl-{number:04}"
        self.completions.append(
            {"id": id, "object": "chat.completion", "created": 1_750_004_000 + number, "model": model,
             "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                          "message": {"role": "assistant", "content": answer, "refusal": None}}],
             "usage": {"prompt_tokens": 58, "completion_tokens": 2, "total_tokens": 60}, "request_id": f"req_{number}",
             "tools": None, "tool_choice": None, "seed": None, "top_p": 1.0, "temperature": 0.0, "input_user": None,
             "presence_penalty": 0.0, "frequency_penalty": 0.0, "metadata": {"app": "desk"}, "response_format": None}
        )  # fmt: skip
        self.messages[id] = [
            {"id": f"{id}-0", "role": "system", "content": system, "name": None, "content_parts": None},
            {"id": f"{id}-1", "role": "user", "content": text, "name": None, "content_parts": None},
        ]

    # What it answers.

    def answer(self, method, path, query, body):
        """The status and the body of an answer: JSON, or bytes as they are."""
        parts = [unquote(part) for part in path.strip("/").split("/")][1:]
        if method == "POST":
            return self._chat(body)
        match parts:
            case ["models"]:
                return 200, {"object": "list", "data": self.models}
            case ["fine_tuning", "jobs"]:
                return self._page(self.jobs, query)
            case ["fine_tuning", "jobs", job]:
                return self._one(self.jobs, job)
            case ["fine_tuning", "jobs", job, "events"]:
                return self._page(self.events.get(job), query)
            case ["fine_tuning", "jobs", job, "checkpoints"]:
                return self._page(self.checkpoints.get(job), query)
            case ["files"]:
                purpose = query.get("purpose")
                return self._page([file for file in self.files if purpose in (None, file["purpose"])], query)
            case ["files", file]:
                return self._one(self.files, file)
            case ["files", file, "content"]:
                return self._content(file)
            case ["evals"]:
                return self._page(self.evals, query)
            case ["evals", id]:
                return self._one(self.evals, id)
            case ["evals", id, "runs"]:
                return self._page(self.runs.get(id), query)
            case ["evals", _, "runs", run, "output_items"]:
                return self._page(self.items.get(run), query)
            case ["chat", "completions"]:
                return self._page(self.completions, query)
            case ["chat", "completions", id]:
                return self._one(self.completions, id)
            case ["chat", "completions", id, "messages"]:
                return self._page(self.messages.get(id), query)
        return error(404, f"Invalid URL (GET {path})")

    def _page(self, objects, query):
        if objects is None:
            return error(404, "No such object.")
        objects = [object for object in objects if object["id"] not in self.deleted]
        start = 0
        if after := query.get("after"):
            places = [index for index, object in enumerate(objects) if object["id"] == after]
            if not places:
                return error(404, f"No such object: {after}", param="after")
            start = places[0] + 1
        size = min(int(query.get("limit", 20)), PAGE)
        page = objects[start:start + size]
        # The end of a page stands at the beginning of the next one once more, as it does while objects come and go.
        if start:
            page = [objects[start - 1], *page]
        ids = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": None, "last_id": None}
        return 200, {"object": "list", "data": page, "has_more": start + size < len(objects), **ids}

    def _one(self, objects, id):
        found = [object for object in objects if object["id"] == id and id not in self.deleted]
        return (200, found[0]) if found else error(404, f"No such object: {id}", param="id")

    def _content(self, id):
        file = next((file for file in self.files if file["id"] == id and id not in self.deleted), None)
        if file is None:
            return error(404, f"No such File object: {id}", param="id")
        if file["purpose"] in ("assistants", "user_data"):
            return error(400, f"Not allowed to download files of purpose: {file['purpose']}")
        if file["purpose"] == "fine-tune" and self.free:
            message = "To help mitigate abuse, downloading of fine-tune training files is disabled for free accounts."
            return error(400, message)
        return 200, self.contents[id]

    def _chat(self, body):
        model = body.get("model", "").split(":ckpt-step-")[0]
        if model not in self.answers or model in self.deleted:
            return error(404, f"The model `{body.get('model')}` does not exist or you do not have access to it.",
                         code="model_not_found")  # fmt: skip
        asked = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
        text = self.answers[model].get(asked, "unclear")
        sent = sum(len(str(message["content"]).split()) for message in body["messages"])
        return 200, {
            "id": f"chatcmpl-{len(self.requests)}", "object": "chat.completion", "created": 1_760_000_000,
            "model": body["model"], "service_tier": "default", "system_fingerprint": "fp_1",
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": None,
                         "message": {"role": "assistant", "content": text, "refusal": None, "annotations": []}}],
            "usage": {"prompt_tokens": sent, "completion_tokens": len(text.split()),
                      "total_tokens": sent + len(text.split())},
        }  # fmt: skip

    def _fault(self, path):
        with self.lock:
            for fault in self.faults:
                if not fault.is_used and fault.pattern.search(path):
                    fault.is_used = True
                    return fault.what
        return None

    def _handler(account):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Head and body go out together.
            wbufsize = -1

            def _serve(self):
                length = int(self.headers.get("content-length") or 0)
                sent = self.rfile.read(length)
                address = urlsplit(self.path)
                account.requests.append((self.command, self.path))
                account.headers.append(dict(self.headers))
                fault = account._fault(self.path)
                if callable(fault):
                    fault()
                    fault = None
                is_chat = self.command == "POST" and address.path == "/v1/chat/completions"
                if self.command != "GET" and not is_chat:
                    account.refused.append((self.command, self.path))
                    status, body = error(405, "Nothing may be changed.")
                elif self.headers.get("authorization") != f"Bearer {KEY}":
                    status, body = error(401, f"Incorrect API key provided: {KEY[:7]}***{KEY[-4:]}.")
                elif fault == 429:
                    status, body = error(429, "Rate limit reached.", code="rate_limit_exceeded")
                elif fault == 500:
                    status, body = error(500, "The server had an error.")
                elif isinstance(fault, dict):
                    status, body = 200, fault
                elif account.off and address.path.startswith(account.off):
                    status, body = error(404, f"Invalid URL ({self.command} {address.path})")
                else:
                    parsed = json.loads(sent) if is_chat else None
                    status, body = account.answer(self.command, address.path, dict(parse_qsl(address.query)), parsed)
                self._reply(status, body, fault == "cut")

            do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

            def _reply(self, status, body, is_cut):
                is_json = not isinstance(body, bytes)
                content = json.dumps(body).encode() if is_json else body
                with contextlib.suppress(OSError):
                    self.send_response(status)
                    self.send_header("content-type", "application/json" if is_json else "application/octet-stream")
                    self.send_header("content-length", str(len(content)))
                    if status == 429:
                        self.send_header("retry-after", "1")
                    self.end_headers()
                    self.wfile.write(content[:len(content) // 2] if is_cut else content)
                    self.wfile.flush()
                if is_cut:
                    self.close_connection = True

            def log_message(self, *_):
                pass

        return Handler


def error(status, message, param=None, code=None):
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": param, "code": code}}


if __name__ == "__main__":
    with Account(free="--free" in sys.argv) as running:
        print(f"OPENAI_API_KEY={KEY} attune move-in openai --openai-url {running.url}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
