"""Makes schemas and other fields of requests that were meant to cost a server much and a client little. The same seed
gives the same requests."""

import string

LETTERS = string.ascii_lowercase


def word(random, length=4, letters=LETTERS):
    return "".join(random.choice(letters) for _ in range(length))


def patterns(random):
    """An expression that is large once it is unfolded, or that reads a letter in many ways."""
    inner = word(random, random.choice([1, 2, 4]), random.choice(["ab", LETTERS]))
    kind = random.randrange(10)
    if kind == 0:
        return f"^.*{inner}.*$"
    if kind == 1:
        return f"^(.*{inner}.{{{random.choice([5, 50, 500, 2000])}}})*$"
    if kind == 2:
        return "^" + "(" * 5 + inner + "{64})" * 5 + "$"
    if kind == 3:
        return f"^([{inner}]{{1,{random.choice([10, 300, 1000])}}}){{1,{random.choice([10, 300, 1000])}}}$"
    if kind == 4:
        return "^(" + "|".join(word(random, 6) for _ in range(random.choice([10, 100, 700]))) + ")*$"
    if kind == 5:
        return random.choice(["\\p{L}", "[^\\p{L}]", "(?i)\\p{Lu}", "[\\p{L}\\p{N}]"]) * random.choice([1, 20, 800])
    if kind == 6:
        return "^(" + "".join(f"[{word(random, 5)}]?" for _ in range(random.choice([5, 40, 300]))) + f"){inner}$"
    if kind == 7:
        return f"{inner}.{{{random.choice([10, 200, 1000])}}}{inner}"
    if kind == 8:
        return f"^((a?){{{random.choice([20, 200, 1000])}}}){{{random.choice([2, 20, 200])}}}$"
    return "^(" + "".join(f"({c}|{c}{c})*" for c in word(random, random.choice([3, 12, 60]))) + ")$"


def some(random, make, counts=(2, 8, 30, 150, 600)):
    return [make(random) for _ in range(random.choice(counts))]


def text(random):
    schema = {"type": "string"}
    kind = random.randrange(5)
    if kind == 0:
        schema["allOf"] = [{"type": "string", "pattern": pattern} for pattern in some(random, patterns)]
    elif kind == 1:
        schema["enum"] = some(random, lambda random: word(random, 40), (10, 200, 1200))
    elif kind == 2:
        schema |= {"pattern": patterns(random), "maxLength": random.choice([10, 1000, 100_000])}
    elif kind == 3:
        schema |= {"minLength": random.choice([1, 900, 50_000]), "maxLength": random.choice([60_000, 4_000_000_000])}
    else:
        schema |= {"pattern": patterns(random), "format": random.choice(["email", "uri", "date-time", "hostname"])}
    return schema


def number(random):
    kind = random.randrange(3)
    if kind == 0:
        return {"type": "integer", "multipleOf": random.choice([7, 997, 9973, 49_999, 50_001, 10**9 + 7])}
    if kind == 1:
        return {"type": "number", "multipleOf": random.choice([0.37, 0.0003, 7.77])}
    low = random.choice([0.1234567890123456, -(10**18), 3e-300])
    return {"type": random.choice(["number", "integer"]), "minimum": low, "maximum": random.choice([1e19, 9e300, 10])}


def record(random, depth):
    kind = random.randrange(6)
    if kind == 0:
        return {"type": "object", "patternProperties": {p: {} for p in some(random, patterns)}}
    if kind == 1:
        names = some(random, word, (5, 100, 1500))
        return {"type": "object", "properties": {name: {} for name in names}, "additionalProperties": True}
    if kind == 2:
        pattern = patterns(random)
        names = some(random, word, (5, 100, 800))
        both = {"patternProperties": {pattern: {"maxLength": 3}}, "properties": {name: {} for name in names}}
        return {"type": "object", "allOf": [both, {"patternProperties": {patterns(random): {"minLength": 1}}}]}
    if kind == 3:
        names = some(random, word, (5, 60))
        count = len(names) // 2
        listed = {name: schema(random, depth + 1) for name in names[:4]} | {name: {} for name in names[4:]}
        return {"type": "object", "properties": listed, "minProperties": count, "maxProperties": count + 1}
    if kind == 4:
        return {"type": "object", "propertyNames": {"pattern": patterns(random)}, "additionalProperties": text(random)}
    return {"type": "object", "properties": {word(random): schema(random, depth + 1) for _ in range(4)}}


def choice(random, depth):
    kind = random.randrange(4)
    if kind == 0:
        return {"anyOf": [schema(random, depth + 1) for _ in range(random.choice([2, 6]))]}
    if kind == 1:
        constants = [{"const": [index, word(random)]} for index in range(random.choice([10, 300, 1500]))]
        return {"type": "array", "items": {"anyOf": constants}}
    if kind == 2:
        alternatives = [{"properties": {word(random, 1): {"const": i}}} for i in range(random.choice([3, 12, 40]))]
        return {"allOf": [{"anyOf": alternatives} for _ in range(random.choice([2, 4, 8]))]}
    kinds = [{"type": "object", "required": ["k"], "properties": {"k": {"const": i}}} for i in range(60)]
    return {"oneOf": kinds}


def items(random, depth):
    most = random.choice([5, 300, 20_000, 4_000_000_000])
    if random.random() < 0.3:
        chain = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(random.choice([5, 200, 1000]))}
        return {"$defs": chain | {f"d{len(chain)}": {}}, "$ref": "#/$defs/d0"}
    return {"type": "array", "items": schema(random, depth + 1), "minItems": min(most, 3000), "maxItems": most}


def schema(random, depth=0):
    """A schema as costly as its size allows."""
    if depth > 3:
        return {"type": "string", "pattern": patterns(random)}
    make = random.choice([text, text, number, record, record, choice, items])
    return make(random) if make in (text, number) else make(random, depth)
