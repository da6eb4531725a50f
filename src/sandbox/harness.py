# Runs in the sandbox: reads the code of a grader and items, one JSON object in a line each, and answers with scores.
import json
import linecache
import math
import os
import sys
import traceback
import types

NAME = "<grader>"
MOST = 2000
FRAMES = 8

loads, dumps, read, write = json.loads, json.dumps, os.read, os.write
requests = os.fdopen(os.dup(0), "rb")
answers = os.dup(1)
# What the code prints goes nowhere.
null = os.open(os.devnull, os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(null, descriptor)
os.close(null)


def say(answer):
    rest = dumps(answer).encode("ascii") + b"\n"
    while rest:
        rest = rest[write(answers, rest) :]


def words(error):
    """Returns what went wrong, with the lines of the grader that it went through."""
    try:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == NAME]
        way = "".join(traceback.format_list(frames[-FRAMES:]))[-MOST:]
        told = (way + "".join(traceback.format_exception_only(type(error), error))[:MOST]).strip()
        # Whole characters, and none that a database refuses.
        return told.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    except BaseException:
        return "The grader failed, and why cannot be told."


def load(source):
    module = types.ModuleType("grader")
    linecache.cache[NAME] = (len(source), None, source.splitlines(True), NAME)
    sys.modules["grader"] = module
    exec(compile(source, NAME, "exec"), module.__dict__)
    grade = getattr(module, "grade", None)
    if not callable(grade):
        raise TypeError("The source defines no function `grade(sample, item)`.")
    return grade


def refuse(constant):
    raise ValueError(constant + " is not JSON")


def sample_of(given):
    sample = {"output_text": given["output_text"]}
    try:
        sample["output_json"] = loads(given["output_text"], parse_constant=refuse)
    except Exception:
        # No key for an answer that is not JSON.
        pass
    sample["output_tools"] = given["output_tools"]
    sample["choices"] = given["choices"]
    return sample


def number(value):
    kind = type(value)
    if not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        raise TypeError("`grade` must return a number, not " + kind.__name__[:100] + ".")
    score = float(value)
    if not math.isfinite(score):
        raise ValueError("`grade` must return a finite number, not " + repr(score) + ".")
    return score


def main():
    grade = None
    for line in requests:
        request = loads(line)
        answer = {"turn": request["turn"]}
        try:
            if grade is None:
                grade = load(request["source"])
            else:
                answer["score"] = number(grade(sample_of(request["sample"]), request["item"]))
        except BaseException as error:
            answer["fault"] = words(error)
        # Nothing of an item is kept while the next one is awaited.
        del request, line
        say(answer)


main()
