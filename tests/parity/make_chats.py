"""Writes tests/fixtures/chats.json: what transformers renders of conversations with the chat templates in
tests/common/templates, and the tokens of the rendered texts.

Attune's unit tests (crates/attune-model/src/chat_rendering_tests.rs) render the same. `null` stands for a conversation
that a template refuses.

    python make_chats.py [FOLDER_WITH_TEMPLATES OUTPUT.json]

With a folder, its templates are taken instead, and the tests read the output if ATTUNE_CHATS names it: that is how
templates of real models are checked, which are not a part of this repository.
"""

import datetime
import json
import re
import sys
from pathlib import Path

import transformers.utils.chat_template_utils as utils
from tokenizers import AddedToken, Tokenizer, processors
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[2]
NOW = 1_700_006_390

SYSTEM = {"role": "system", "content": "Be <brief> & 'kind'. "}
HI = {"role": "user", "content": " Grüße\n"}
HELLO = {"role": "assistant", "content": "Hello – \"friend\"."}
AND = {"role": "user", "content": "And <b>now</b>?"}
BYE = {"role": "assistant", "content": "Nothing.\n"}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call12345", "type": "function",
     "function": {"name": "weather", "arguments": {"city": "Zürich", "days": [1, 2.5], "plain": True, "none": None}}}]}
RESULT = {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": "{\"temp\": 12, \"sky\": \"grey\"}"}
SECOND = {"role": "assistant", "content": "Both.", "tool_calls": [
    {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}},
    {"id": "call67890", "type": "function", "function": {"name": "clock", "arguments": {}}}]}
CLOCK = {"role": "tool", "tool_call_id": "call67890", "name": "clock", "content": "12:00"}
TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "Tells the \"weather\" –\nfor <days>.",
        "parameters": {"type": "object", "required": ["city"], "properties": {
            "city": {"type": "string", "description": "A town's name"},
            "days": {"type": "array", "items": {"type": "number"}},
            "unit": {"type": "string", "enum": ["c", "f"], "default": "c"}}}}},
    {"type": "function", "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}}},
]
THOUGHT = {"role": "assistant", "content": "<think>\nWell.\n</think>\n\nIt is 4."}

# Those of the templates that are in the manner of the newer families.
FAMILIES = [
    "falcon3", "gemma", "gemma3", "gpt_oss", "granite", "granite4", "llama3", "llama31_tools", "ministral3", "nemo", "olmo",
    "olmo3", "phi3", "phi3_no_system", "phi4", "phi4_mini", "qwen3", "qwen3_opens_think", "r1", "smollm2", "smollm3",
]
# Name, messages, tools, whether the answer begins behind them.
CASES = [
    ("user", [HI], None, True),
    ("user, closed", [HI], None, False),
    ("system", [SYSTEM, HI], None, True),
    ("turns", [HI, HELLO, AND], None, True),
    ("system, turns, closed", [SYSTEM, HI, HELLO, AND, BYE], None, False),
    ("two assistants", [HI, HELLO, BYE, AND], None, True),
    ("two users", [HI, AND], None, True),
    ("no user", [SYSTEM], None, True),
    ("assistant first", [HELLO, AND], None, True),
    ("system later", [HI, HELLO, SYSTEM, AND], None, True),
    ("thought", [HI, THOUGHT, AND], None, True),
    ("thought last", [HI, THOUGHT], None, False),
    ("tools", [HI], TOOLS, True),
    ("system, tools", [SYSTEM, HI], TOOLS, True),
    ("tools, turns", [HI, HELLO, AND], TOOLS, True),
    ("call", [HI, CALL], TOOLS, False),
    ("result", [HI, CALL, RESULT], TOOLS, True),
    ("result, system", [SYSTEM, HI, CALL, RESULT, HELLO, AND], TOOLS, True),
    ("two calls", [HI, SECOND, RESULT, CLOCK], TOOLS, True),
    ("calls without tools", [HI, CALL, RESULT, HELLO, AND], None, True),
]
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc)


def tokenizer(source):
    """The demo model's tokenizer with a begin token before each text and the marks that the template writes."""
    tokenizer = Tokenizer.from_file(str(ROOT / "models" / "demo" / "tokenizer.json"))
    marks = marks_of(source)
    tokenizer.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in marks])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **ROLES)


def marks_of(source):
    found = re.findall(r"<[|｜][^<>'\"{}\s]*[|｜]>|<(?:start|end)_of_turn>|\[/?[A-Z_]+\]", source)
    return list(dict.fromkeys([*ROLES.values(), *found]))


def render(source, messages, tools, begins):
    arguments = dict(messages=messages, tools=tools, documents=None, add_generation_prompt=begins, **ROLES)
    try:
        return utils._compile_jinja_template(source).render(**arguments)
    except Exception:
        return None


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests" / "common" / "templates"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "tests" / "fixtures" / "chats.json"
    utils.datetime = Clock
    templates = {}
    for file in sorted(folder.glob("*.jinja")):
        if len(sys.argv) == 1 and file.stem not in FAMILIES:
            continue
        source = file.read_text(encoding="utf-8")
        # Of transformers' own making, so that its treatment of messages is a part of what is compared.
        own = tokenizer(source)
        rendered, tokens = [], []
        for _, messages, tools, begins in CASES:
            text = render(source, messages, tools, begins)
            rendered.append(text)
            if text is None:
                tokens.append(None)
                continue
            options = dict(tools=tools, add_generation_prompt=begins, chat_template=source)
            if own.apply_chat_template(messages, tokenize=False, **options) != text:
                raise SystemExit(f"{file.name}: transformers renders another text")
            ids = own.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
            tokens.append(" ".join(map(str, ids)))
        row = {"marks": marks_of(source), "rendered": rendered, "tokens": tokens}
        # The tests have those of the repository.
        templates[file.stem] = row if len(sys.argv) == 1 else {**row, "source": source}
    cases = [{"name": name, "messages": messages, "tools": tools, "begins": begins} for name, messages, tools, begins in CASES]
    table = {"now": NOW, "roles": ROLES, "cases": cases, "templates": templates}
    target.write_text(json.dumps(table, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    refused = sum(text is None for row in templates.values() for text in row["rendered"])
    print(f"{len(templates)} templates, {len(CASES)} conversations, {refused} refused, {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
