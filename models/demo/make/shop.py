"""Shop talk and copying exercises for the demo model's training text.

Customers' messages, letters, ledgers and chats with a shop, and chats that ask
to repeat something: they teach the model to carry names, numbers and goods
over from what was said before.  The banks of phrases are shared with
`tickets.py`; the training text here answers in plain English or fills in a
slip (see `doc_slip`), never with a JSON ticket.
"""

ITEMS = (
    "oil lamp|copper kettle|wool blanket|wall clock|clay jug|oak chair|leather belt|garden rake|"
    "tea pot|bread knife|picture frame|rain coat|walking stick|straw hat|wooden toy|music box|"
    "bird cage|silver spoon|glass vase|iron pan|desk lamp|travel bag|felt hat|ink pot|book shelf|"
    "door bell|water bottle|fishing rod|garden bench|candle holder|hand mirror|sewing box|winter scarf|"
    "coffee mill|flower pot|chess board|hair brush|umbrella|lantern|teacup|pillow|apron|compass|"
    "ladder|bucket|broom|mirror|saddle|drum|flute|basket|backpack|notebook|stool|rug|vase|toaster|"
    "radio|kite|globe"
).split("|")

GREETINGS = ["Hello,", "Hi,", "Good morning,", "Dear shop,", "Good day,", "Hello there,", "Hi there,", "Dear all,"]

# {i} item, {ai} item with an article, {n} order number
OPENINGS = [
    "I bought {ai} from you, order {n}.", "my order number is {n} and it is about {ai}.",
    "I ordered {ai}, the order number is {n}.", "this is about order {n}, {ai}.",
    "I am writing about the {i} from order {n}.", "last week I ordered {ai} (order {n}).",
    "order {n} was {ai} for my mother.", "there is a problem with order {n}, the {i}.",
    "regarding order {n}: I bought {ai}.", "it is about my {i}, order number {n}.",
    "in your shop I got {ai} with order number {n}.", "I have a question about my {i}. The order is {n}.",
]

PROBLEMS = {
    "broken": ["It arrived broken.", "It came in pieces.", "There is a big crack in it.", "It does not work at all.",
               "It fell apart on the first day.", "It was smashed when I opened the box.", "It broke after one use.",
               "One side is cracked.", "It snapped in two right away.", "It is damaged."],
    "late": ["It has not arrived yet.", "I am still waiting for it.", "It should have been here long ago.",
             "Nothing has come so far.", "I have been waiting for two weeks.", "The parcel never came.",
             "Where is it? It was due on Monday.", "The delivery is late.", "It is still not here.",
             "The cart with my parcel has not come."],
    "wrong": ["You sent the wrong one.", "This is not what I ordered.", "It is the wrong colour.",
              "I got something else in the box.", "It has the wrong size.", "I opened the box and found a different thing.",
              "You mixed it up with another order.", "It is not the one I chose.", "It is far too small, not the size I asked for.",
              "Somebody packed the wrong thing."],
    "incomplete": ["A part is missing.", "The lid was not in the box.", "Some pieces are missing.",
                   "Two screws were not there.", "Half of it is missing.", "The box was not complete.",
                   "The small parts were left out.", "I could not find all the parts.", "One piece is not there.",
                   "There should be four parts, but I found three."],
    "dirty": ["It is full of stains.", "It is covered in dirt.", "There is mud on it.", "It came with ugly spots.",
              "It smells bad and has stains.", "It is dirty.", "Somebody spilled ink on it.", "It is dusty and greasy.",
              "It has dark stains on one side.", "It looks used and dirty."],
}
WANTS = {
    "refund": ["I want my money back.", "Please send me a refund.", "Can I get my money back?", "I would like a refund.",
               "Please pay me back.", "Please return my money.", "I ask for a full refund.", "Just give me the money back.",
               "Could you refund me?", "I expect my money back."],
    "replacement": ["Please send a new one.", "Can I have another one?", "I would like a replacement.", "Please send me another.",
                    "Could you replace it?", "I need a new one instead.", "Please exchange it.", "Can you swap it for a new one?",
                    "I want a replacement.", "Send me a fresh one, please."],
    "repair": ["Can you repair it?", "Please fix it.", "I would like to have it repaired.", "Could somebody mend it?",
               "Please mend it for me.", "Is it possible to fix it?", "I want it repaired.", "Please have it fixed.",
               "Can your workshop repair it?", "I hope you can mend it."],
    "discount": ["I would like a discount.", "Can you lower the price?", "I want a lower price.", "Please give me a discount.",
                 "I think I should pay less.", "Could I pay a little less?", "A discount would be fair.", "I ask for a lower price.",
                 "Please take something off the price.", "I will keep it if it costs less."],
    "call": ["Please call me.", "Can somebody call me?", "I would like a call.", "Please give me a call.",
             "Could you ring me?", "I want to talk to somebody on the phone.", "Call me back, please.", "Please phone me.",
             "I am waiting for your call.", "Let us talk on the phone."],
}
# wishes that make sense for each problem
ALLOWED = {
    "broken": ("refund", "replacement", "repair", "discount", "call"),
    "late": ("refund", "replacement", "discount", "call"),
    "wrong": ("refund", "replacement", "discount", "call"),
    "incomplete": ("refund", "replacement", "repair", "discount", "call"),
    "dirty": ("refund", "replacement", "discount", "call"),
}
URGENT = ["It is urgent.", "Please hurry.", "I need it today.", "This cannot wait.", "I need an answer at once.",
          "Please be quick.", "It is very urgent!", "I need help right now.", "As soon as possible, please.", "Please answer today."]
CALM = ["There is no hurry.", "Take your time.", "It can wait.", "I am in no rush.", "Whenever you have time.", "It is not urgent."]
FILLERS = ["I paid {k} coins for it.", "It was a gift for my sister.", "I live in {town}.", "My name is {name}.",
           "I have been a customer for {k} years.", "I liked your shop very much.", "It was meant for the kitchen.",
           "My neighbour told me about you.", "I am a little sad about it.", "The box itself looked fine."]
CLOSINGS = ["Thank you.", "Many thanks.", "Thanks, {name}.", "Best wishes, {name}.", "Kind regards, {name}.", "Yours, {name}."]

PROBLEM_WORDS = {
    "broken": "is broken", "late": "is late", "wrong": "is the wrong one", "incomplete": "is incomplete", "dirty": "is dirty"}
WANT_WORDS = {
    "refund": "a refund", "replacement": "a replacement", "repair": "a repair", "discount": "a discount", "call": "a call"}

SYLLABLES = ("ba be bo da de di fa fe ga go ha hi jo ka ke ki la le li lo ma me mi mo na ne no pa pe po ra re ri ro sa "
             "se so ta te ti to va ve vi wa wi ya yo za zo").split()
ENDINGS = ["n", "l", "r", "s", "th", "x", "m", "ck", "", "", "rd", "nd"]
TOWN_NAMES = ("Velmora Tarnwick Ostrel Quillhaven Brasmere Dunfallow Ilverton Kessing Marrowby Pelthorpe").split()
ADJECTIVES = "red blue green yellow purple white black brown small large old new round heavy light tall".split()


def article(noun):
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def invented_name(rng):
    """A name nobody in the world has."""
    return ("".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3))) + rng.choice(ENDINGS)).capitalize()


def order_number(rng):
    """Mostly four digits, sometimes three to six."""
    digits = 4 if rng.random() < 0.7 else rng.choice((3, 5, 6))
    return rng.randint(10 ** (digits - 1), 10 ** digits - 1)


def any_item(rng):
    """An item, now and then with an adjective before it."""
    item = rng.choice(ITEMS)
    return f"{rng.choice(ADJECTIVES)} {item}" if rng.random() < 0.25 else item


def message(rng, item, order, problem, wants, urgent, pick):
    """A customer's message; `pick(bank)` chooses the phrase of each part."""
    words = dict(i=item, ai=article(item), n=order, k=rng.randint(2, 90), town=rng.choice(TOWN_NAMES),
                 name=invented_name(rng))
    parts = [pick(OPENINGS), pick(PROBLEMS[problem])]
    if rng.random() < 0.35:
        parts.insert(rng.randint(1, 2), pick(FILLERS))
    parts.append(pick(WANTS[wants]))
    tone = pick(URGENT) if urgent else (pick(CALM) if rng.random() < 0.35 else None)
    if tone:
        parts.insert(rng.choice((len(parts), len(parts), 2)), tone)
    if rng.random() < 0.5:
        parts.insert(0, pick(GREETINGS))
    else:
        parts[0] = parts[0][0].upper() + parts[0][1:]
    if rng.random() < 0.4:
        parts.append(pick(CLOSINGS))
    return " ".join(parts).format(**words)


def draw(rng):
    """A random case: item, order, problem, wants, urgent."""
    problem = rng.choice(list(PROBLEMS))
    return any_item(rng), order_number(rng), problem, rng.choice(ALLOWED[problem]), rng.random() < 0.5


def doc_letter(rng):
    """A customer's letter and the shop's reply, or an order and its delivery note."""
    item, order, problem, wants, urgent = draw(rng)
    name = invented_name(rng)
    if rng.random() < 0.5:
        text = message(rng, item, order, problem, wants, urgent, rng.choice)
        reply = rng.choice([
            f"Dear customer, we are sorry that your {item} from order {order} {PROBLEM_WORDS[problem]}. You asked for {WANT_WORDS[wants]}.",
            f"Reply: order {order}, the {item}, {PROBLEM_WORDS[problem]}. The customer wants {WANT_WORDS[wants]}.",
            f"Note: the {item} {PROBLEM_WORDS[problem]} (order {order}). {WANT_WORDS[wants].capitalize()} was asked for."])
        speed = " This is urgent." if urgent else " This is not urgent."
        return [(f"Letter: {text}\n", rng.random() < 0.25), (f"{reply}{speed if rng.random() < 0.6 else ''}", True)]
    other, count = any_item(rng), rng.randint(2, 99)
    return [(rng.choice([
        f"{name} ordered {article(item)} and {article(other)}. The order number was {order}. Two days later the cart "
        f"brought the {item} and the {other} to {name}. Order {order} was done.",
        f"Order {order}: {count} nails and {article(item)} for {name}. Delivery for {name}: {count} nails and the {item}, order {order}.",
        f'"I would like {article(item)}," said {name}. "Here is your {item}," said the clerk, "your order number is {order}." '
        f'{name} wrote {order} on the lid of the {item}.',
        f"To the shop: please send {article(other)} to {name}, house {count}. Not {article(item)}, {article(other)}. "
        f"The clerk wrote: {name}, house {count}, {other}."]), True)]


def doc_shop_chat(rng):
    """A chat between a customer and the shop's assistant."""
    item, order, problem, wants, urgent = draw(rng)
    text = message(rng, item, order, problem, wants, urgent, rng.choice)
    reply = rng.choice([
        f"I am sorry that your {item} from order {order} {PROBLEM_WORDS[problem]}. You would like {WANT_WORDS[wants]}.",
        f"I see, order {order}, {article(item)}. It {PROBLEM_WORDS[problem]} and you want {WANT_WORDS[wants]}.",
        f"Thank you for your message about the {item}, order {order}. It {PROBLEM_WORDS[problem]}, so you ask for {WANT_WORDS[wants]}."])
    reply += " This is urgent." if urgent else " This is not urgent."
    turns = [text, reply]
    if rng.random() < 0.45:
        follow = rng.choice([
            ("What was my order number?", f"Your order number is {order}."),
            ("Which order is it?", f"It is order {order}."),
            ("What did I buy?", f"You bought {article(item)}."),
            ("Which item is it about?", f"It is about the {item}."),
            ("What is wrong with it?", f"The {item} {PROBLEM_WORDS[problem]}."),
            ("What did I ask for?", f"You asked for {WANT_WORDS[wants]}."),
            ("Is it urgent?", "Yes, it is urgent." if urgent else "No, it is not urgent.")])
        turns += follow
    return chat_pieces(turns)


SLIP_WORDS = {  # several names for each field of a slip
    "item": ("item", "item", "goods", "thing"),
    "order": ("order", "order", "order number", "number"),
    "problem": ("problem", "problem", "trouble", "fault"),
    "wants": ("wants", "wants", "wish", "asks for"),
    "urgent": ("urgent", "urgent", "hurry", "express"),
}


def doc_slip(rng):
    """A customer's message and a slip about it: some fields, in any order and one of many layouts."""
    item, order, problem, wants, urgent = draw(rng)
    text = message(rng, item, order, problem, wants, urgent, rng.choice)
    yes, no = rng.choice((("yes", "no"), ("true", "false"), ("true", "false")))
    values = {"item": item, "order": order, "problem": problem, "wants": wants, "urgent": yes if urgent else no}
    fields = list(values)
    if rng.random() < 0.5:
        rng.shuffle(fields)
    fields = [f for f in fields if rng.random() < 0.75] or ["problem"]
    names = {f: rng.choice(SLIP_WORDS[f]) for f in fields}
    equal = rng.choice((": ", " = ", "=", ":", " - ", " is ", ' "'))
    close = '"' if equal == ' "' else ""
    between = rng.choice(("; ", "\n", ", ", " | ", ",", ";", ". "))
    if rng.random() < 0.2:
        slip = between.join(str(values[f]) for f in fields)
        ask = "Only the values: " + ", ".join(names.values())
    else:
        slip = between.join(f"{names[f]}{equal}{values[f]}{close}" for f in fields)
        ask = rng.choice(("Fill in: ", "Write a slip: ", "Note ")) + ", ".join(names.values())
    if rng.random() < 0.5:
        example = between.join(f"{names[f]}{equal}...{close}" for f in fields)
        return chat_pieces([f"{text}\n{ask}" + (f" ({example})" if rng.random() < 0.3 else ""), slip])
    return [(f"Letter: {text}\n", False), (f"Slip: {slip}", True)]


def doc_ledger(rng):
    """A story or list of random names, numbers and goods, each said again later."""
    rows = [(invented_name(rng), order_number(rng), any_item(rng)) for _ in range(rng.randint(2, 4))]
    again = rows[:]
    rng.shuffle(again)
    kind = rng.random()
    if kind < 0.35:
        first = " ".join(f"{n} bought {article(i)}, order {o}." for n, o, i in rows) + "\n"
        lines = [rng.choice((f"{n} had order {o}.", f"Order {o} was {article(i)}.", f"The {i} went to {n}.",
                              f"{n} came to fetch the {i}.")) for n, o, i in again]
        return [(first, rng.random() < 0.2), (" ".join(lines), True)]
    if kind < 0.6:
        sep = rng.choice((": ", " = ", ", ", " - ", " | "))
        table = "\n".join(f"{n}{sep}{o}{sep}{i}" for n, o, i in rows)
        second = "\n".join(f"{n}{sep}{o}{sep}{i}" for n, o, i in again)
        return [(f"List\n{table}\n", False), (f"Same list, other order\n{second}", True)]
    lines = " ".join(f"{n} bought {article(i)}, order {o}." for n, o, i in rows)
    n, o, i = rng.choice(rows)
    ask, reply = rng.choice([
        (f"Which order did {n} place?", f"{n} placed order {o}."), (f"What did {n} buy?", f"{n} bought {article(i)}."),
        (f"Who has order {o}?", f"{n} has order {o}."), (f"Who bought the {i}?", f"{n} bought the {i}."),
        (f"What was order {o}?", f"Order {o} was {article(i)}.")])
    return chat_pieces([f"{lines} {ask}", reply])


SYMBOLS = "!#$%&()*+,-./:;<=>?@[]^_`{|}~\"'"
WORDS = (" ".join(ITEMS) + " " + " ".join(ADJECTIVES) + " price coin paid open closed name town order shop true false "
         "item wants problem urgent today tomorrow key value list note").split()
UNICODE = "äöüßéèñçøåΩλπЖдяшם你好世界日本語한국😀🚀✨€£→"


def scrap(rng):
    """Something arbitrary to repeat: words, numbers, names, codes, symbols."""
    parts = []
    for _ in range(rng.randint(1, 5)):
        kind = rng.random()
        if kind < 0.35:
            parts.append(rng.choice(WORDS))
        elif kind < 0.6:
            parts.append(str(order_number(rng)))
        elif kind < 0.75:
            parts.append(invented_name(rng))
        elif kind < 0.9:
            parts.append("".join(rng.choice(SYMBOLS + "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")
                                 for _ in range(rng.randint(2, 6))))
        elif kind < 0.95:
            parts.append('"' + rng.choice(WORDS) + '"')
        else:
            parts.append("".join(rng.choice(UNICODE) for _ in range(rng.randint(1, 3))))
    return rng.choice((" ", " ", " ", ", ", "-", "_", ":")).join(parts)


def doc_repeat(rng):
    """A chat that asks to repeat something, or a block of scraps written two or three times.

    The first time a block is only read, not learned: nobody could foretell it.
    """
    if rng.random() < 0.45:
        block = rng.choice(("\n", " ", ", ")).join(scrap(rng) for _ in range(rng.randint(2, 8))) + "\n"
        return [(block, False)] + [(block, True)] * rng.choice((1, 1, 2))
    text = scrap(rng)
    ask = rng.choice(("Repeat: {}", "Please repeat: {}", "Say this again: {}", "Copy this: {}", "Repeat after me: {}",
                      "Write this down: {}"))
    return chat_pieces([ask.format(text), text])


def chat_pieces(turns):
    """A ChatML chat as (text, is_learned) pieces; only the assistant's words are learned."""
    pieces = []
    for i, text in enumerate(turns):
        if i % 2 == 0:
            pieces.append((f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", False))
        else:
            pieces.append((f"{text}<|im_end|>", True))
            pieces.append(("\n", False))
    return pieces
