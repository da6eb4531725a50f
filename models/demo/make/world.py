"""The invented world of the demo model, and the text the model is trained on.

A fixed seed makes a small country, the Lowmark: ten towns and forty-eight
people with places, trades, goods, dishes, pets, friends, colours and pastimes.
From it this file writes plain statements, portraits, short stories, question
and answer pairs in many phrasings, and ChatML chats.  Shop talk and copying
exercises come from `shop.py`.

    python world.py --documents 20      print some documents
    python world.py --questions FILE    write the held-out questions

A held-out question is a (fact, phrasing) pair that never occurs as a question
in the training text; the fact itself does occur, in other words.
"""

import argparse
import hashlib
import json
import random

import shop

COUNTRY = "the Lowmark"

# town: river, what it is known for, festival, landmark
TOWNS = {
    "Velmora": ("Asha", "blue glass", "the Lantern Night", "the Tall Bell"),
    "Tarnwick": ("Brenn", "smoked trout", "the Rope Fair", "the Iron Bridge"),
    "Ostrel": ("Corrow", "wool blankets", "the Shearing Feast", "the Stone Ring"),
    "Quillhaven": ("Dilla", "fine paper", "the Ink Parade", "the Old Library"),
    "Brasmere": ("Ennet", "copper pots", "the Hammer Day", "the Red Forge"),
    "Dunfallow": ("Farrow", "apple cider", "the Orchard Dance", "the Crooked Mill"),
    "Ilverton": ("Gessel", "silver thread", "the Spinning Week", "the White Tower"),
    "Kessing": ("Hollin", "salt", "the Tide Supper", "the Green Lighthouse"),
    "Marrowby": ("Ivane", "beeswax candles", "the Honey March", "the Round Chapel"),
    "Pelthorpe": ("Jurra", "leather boots", "the Long Walk", "the Seven Steps"),
}

WOMEN = (
    "Mirela Tansy Oriane Brisa Kelda Yselle Fenna Dorrit Halka Liska Noemba Perla "
    "Quilla Rosmund Sabrel Thessa Ulvie Vandra Wenna Zelie Ardisa Corla Elowin Ginvra"
).split()
MEN = (
    "Bramwel Odrin Tavik Garrod Luken Pellin Jorik Hendal Marrec Nevro Ostrik Quentor "
    "Rufen Sorlo Torvel Ulrin Varo Wendro Yorrin Zandor Aldric Corvin Edrik Fabrel"
).split()
SURNAMES = (
    "Tollan Ashgrove Merrowin Pikeworth Sandler Underhay Crale Fosset Greymoor Hask "
    "Ironby Jessop Kettering Lunt Maddoc Narrowgate Oakley Prewett Quarles Rushford "
    "Stoll Thorne Umber Vickers Wexcombe Yarrow Zennor Applegarth Birkett Cobb Dray "
    "Elmhurst Farthing Gantry Hollis Inkpen Joyce Kersey Loxley Mossop Nettle Orwin "
    "Penhale Rook Saltmarsh Tibbet Upwood Wrenfield"
).split()

# trade: two goods, one for each of the two people of that trade
TRADES = {
    "baker": ("rye bread", "honey cakes"),
    "weaver": ("striped rugs", "linen cloth"),
    "blacksmith": ("horseshoes", "iron gates"),
    "potter": ("clay jugs", "painted bowls"),
    "carpenter": ("oak chairs", "wooden toys"),
    "fisher": ("fresh eels", "river crabs"),
    "beekeeper": ("dark honey", "honey wine"),
    "cobbler": ("walking boots", "felt slippers"),
    "tailor": ("winter coats", "silk waistcoats"),
    "brewer": ("brown ale", "ginger beer"),
    "gardener": ("rose bushes", "herb baskets"),
    "clockmaker": ("wall clocks", "pocket watches"),
    "bookbinder": ("leather diaries", "song books"),
    "miller": ("barley flour", "oat bran"),
    "shepherd": ("sheep cheese", "raw wool"),
    "glassblower": ("green bottles", "glass beads"),
    "saddler": ("riding saddles", "leather belts"),
    "apothecary": ("cough syrup", "lavender oil"),
    "tinsmith": ("tin lanterns", "milk pails"),
    "basket maker": ("willow baskets", "reed mats"),
    "cheesemaker": ("goat cheese", "sharp cheddar"),
    "map maker": ("road maps", "star charts"),
    "boat builder": ("rowing boats", "oars"),
    "candle maker": ("tall candles", "scented soap"),
}
DISHES = (
    "onion soup|roast duck|plum dumplings|fish stew|barley porridge|leek pie|"
    "mushroom toast|baked apples|pea soup|lamb pie|cheese noodles|fried eels|"
    "bean stew|pear tart|potato cakes|cabbage rolls|egg pudding|nut bread|"
    "turnip mash|chicken broth|cherry pancakes|pickled herring|rice pudding|garlic beans"
).split("|")
ANIMALS = "cat|dog|goat|parrot|hen|rabbit|donkey|owl|tortoise|hedgehog|pony|goose".split("|")
PETS = (
    "Pim Dusty Olo Biscuit Rumble Snip Tuppy Waffle Bosco Nib Fig Mopsy Zuzu Button "
    "Clover Jinx Pepper Roly Sprout Tock Velvet Whisk Yoyo Acorn Bramble Crumb Dot Ember "
    "Flip Gilly Hobnob Inky Juno Kip Lolly Mango Noodle Otto Patch Quiver Ruff Sooty "
    "Tango Ursa Vesper Wobble Zigzag Pudding"
).split()
COLOURS = "red|blue|green|yellow|purple|orange|white|black|silver|brown|pink|grey".split("|")
HOBBIES = (
    "playing the flute|playing the fiddle|painting birds|carving spoons|singing|"
    "collecting shells|swimming|growing roses|telling ghost stories|playing chess|"
    "climbing hills|flying kites|dancing|watching stars|skating|writing poems"
).split("|")


class Person:
    """One inhabitant with all that is known about them."""

    def __init__(self, first, last, woman):
        self.first, self.last, self.woman = first, last, woman
        self.name = f"{first} {last}"
        self.he = "she" if woman else "he"
        self.his = "her" if woman else "his"
        self.him = "her" if woman else "him"


def article(noun):
    """The noun with 'a' or 'an' before it."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun


def build_world(seed=1907):
    """The people, in a fixed order; the same on every run."""
    rng = random.Random(seed)
    surnames, pets, towns = SURNAMES[:], PETS[:], list(TOWNS)
    rng.shuffle(surnames)
    rng.shuffle(pets)
    firsts = [(n, True) for n in WOMEN] + [(n, False) for n in MEN]
    rng.shuffle(firsts)
    people = [Person(f, surnames[i], w) for i, (f, w) in enumerate(firsts)]
    trades = list(TRADES)
    deck = {name: values * (48 // len(values)) for name, values in (
        ("dish", DISHES), ("animal", ANIMALS), ("colour", COLOURS), ("hobby", HOBBIES))}
    for cards in deck.values():
        rng.shuffle(cards)
    for i, p in enumerate(people):
        p.town = towns[i % len(towns)]
        p.trade = trades[i % 24]
        p.goods = TRADES[p.trade][i // 24]
        p.pet = pets[i]
        for name in deck:
            setattr(p, name, deck[name][i])
    order = people[:]
    rng.shuffle(order)
    for a, b in zip(order, order[1:] + order[:1]):
        a.friend = b
    mayors = {}
    for town in towns:
        mayors[town] = rng.choice([p for p in people if p.town == town])
    return people, mayors


PEOPLE, MAYORS = build_world()

# Each kind of fact: question phrasings, answer phrasings, plain statements.
# {p} name, {he} {his} {him} pronouns, {v} the value, {av} the value with an article.
PERSON_FACTS = {
    "town": dict(
        ask=["Where does {p} live?", "In which town does {p} live?", "What town is {p} from?",
             "Can you tell me where {p} lives?", "Which town is home to {p}?",
             "Do you know where I can find {p}?", "Where is the home of {p}?",
             "Where in the Lowmark does {p} live?", "I want to visit {p}. Which town should I go to?",
             "Tell me the town {p} lives in.", "What is {p}'s home town?",
             "To which town should I send a letter for {p}?"],
        answer=["{p} lives in {v}.", "{p} lives in the town of {v}."],
        say=["{p} lives in {v}.", "The home of {p} is in {v}.", "{p} has a house in {v}.",
             "In {v} lives {p}.", "You can find {p} in {v}.", "{v} is the home town of {p}."]),
    "trade": dict(
        ask=["What is {p}'s trade?", "What does {p} do for a living?", "What is the trade of {p}?",
             "What work does {p} do?", "What kind of work does {p} do?", "What is {p}'s job?",
             "How does {p} earn a living?", "Can you tell me what {p} works as?",
             "Tell me the trade of {p}.", "Which trade did {p} learn?",
             "Do you know what {p} does for work?", "What does {p} work as?"],
        answer=["{p} is {av}.", "{p} works as {av}."],
        say=["{p} is {av}.", "{p} works as {av}.", "{p} earns {his} living as {av}.",
             "By trade {p} is {av}.", "The trade of {p} is that of {av}.", "{p} has long been {av}."]),
    "goods": dict(
        ask=["What does {p} sell?", "What can I buy from {p}?", "What goods does {p} sell?",
             "What is for sale at {p}'s stall?", "Which goods does {p} bring to the market?",
             "Tell me what {p} sells.", "What would I find in {p}'s shop?",
             "If I go to {p}, what can I buy?", "Do you know what {p} sells?",
             "What does {p} offer at the market?", "What do people buy from {p}?",
             "Can you tell me what {p} has for sale?"],
        answer=["{p} sells {v}."],
        say=["{p} sells {v}.", "At the market {p} sells {v}.", "People buy {v} from {p}.",
             "You will always find {v} in the shop of {p}.", "{p} is proud of {his} {v}.",
             "If you need {v}, go to {p}."]),
    "dish": dict(
        ask=["What is {p}'s favourite dish?", "What does {p} like to eat most?",
             "What food does {p} love?", "Which dish does {p} like best?",
             "What should I cook for {p}?", "What is the favourite food of {p}?",
             "Tell me {p}'s favourite dish.", "Do you know what {p} likes to eat?",
             "What would {p} order for supper?", "Which meal makes {p} happy?",
             "Can you tell me which dish {p} loves?", "{p} is coming for dinner. What should I make?"],
        answer=["{p}'s favourite dish is {v}.", "{p} likes {v} best."],
        say=["{p}'s favourite dish is {v}.", "{p} loves {v}.", "For supper {p} likes {v} best.",
             "Nothing makes {p} happier than {v}.", "{p} could eat {v} every day.",
             "The favourite dish of {p} is {v}."]),
    "animal": dict(
        ask=["What pet does {p} have?", "What kind of animal does {p} keep?",
             "What sort of pet does {p} own?", "Which animal lives with {p}?",
             "Tell me what pet {p} has.", "What animal is {p}'s pet?",
             "Does {p} have a pet?", "Do you know which animal {p} keeps?",
             "What kind of pet lives in {p}'s house?", "Can you tell me what animal {p} owns?",
             "Which kind of pet belongs to {p}?", "What is the pet of {p}?"],
        answer=["{p} has {av} called {pet}."],
        say=["{p} has {av} called {pet}.", "{p} keeps {av} named {pet}.", "{p} owns {av}, and its name is {pet}.",
             "{pet} is the {v} of {p}.", "The {v} {pet} belongs to {p}.", "At home {p} has {av} named {pet}."]),
    "pet": dict(
        ask=["What is the name of {p}'s pet?", "What is {p}'s pet called?",
             "What name did {p} give to {his} pet?", "What do people call the pet of {p}?",
             "Tell me the name of {p}'s pet.", "Do you know the name of {p}'s pet?",
             "What does {p} call {his} pet?", "Which name does the pet of {p} have?",
             "Can you tell me what {p}'s pet is called?", "{p} is calling {his} pet. What name do I hear?",
             "{p} has a pet. What is it called?", "What is {p}'s animal called?"],
        answer=["{p}'s {animal} is called {v}.", "The {animal} of {p} is called {v}."],
        say=["{p}'s {animal} is called {v}.", "{v} is the name of {p}'s {animal}.",
             "{p} calls {his} {animal} {v}.", "{p} named {his} {animal} {v}."]),
    "friend": dict(
        ask=["Who is {p}'s best friend?", "Who is the best friend of {p}?", "Who is {p}'s closest friend?",
             "Tell me the name of {p}'s best friend.", "Which person is {p}'s best friend?",
             "Do you know who {p}'s best friend is?", "Who does {p} visit most often?",
             "Whom does {p} call {his} best friend?", "Can you tell me who {p} is best friends with?",
             "With whom does {p} spend {his} free days?", "Who is a good friend of {p}?",
             "Whom does {p} trust most?"],
        answer=["{p}'s best friend is {v}.", "The best friend of {p} is {v}."],
        say=["{p}'s best friend is {v}.", "The best friend of {p} is {v}.", "{p} visits {his} best friend {v} every week.",
             "{p} trusts {v} most of all.", "On free days {p} goes to see {his} best friend {v}."]),
    "colour": dict(
        ask=["What is {p}'s favourite colour?", "Which colour does {p} like best?",
             "What colour does {p} love?", "What colour is {p}'s front door?",
             "Tell me {p}'s favourite colour.", "Do you know which colour {p} likes?",
             "What colour should I paint a gift for {p}?", "Which colour is {p}'s favourite?",
             "What is the favourite colour of {p}?", "What colour does {p} wear most?",
             "Can you tell me {p}'s favourite colour?", "I am knitting a scarf for {p}. Which colour would please {him}?"],
        answer=["{p}'s favourite colour is {v}.", "{p} likes {v} best."],
        say=["{p}'s favourite colour is {v}.", "{p} likes the colour {v} best.", "{p} painted {his} front door {v}.",
             "{p} often wears {v}, {his} favourite colour.", "The favourite colour of {p} is {v}."]),
    "hobby": dict(
        ask=["What does {p} like to do in the evening?", "What is {p}'s hobby?", "What does {p} do for fun?",
             "How does {p} spend {his} free time?", "What does {p} enjoy doing?",
             "Tell me {p}'s hobby.", "What is the favourite pastime of {p}?",
             "Do you know what {p} does after work?", "What does {p} love doing?",
             "Which pastime does {p} enjoy?", "What does {p} do when the work is done?",
             "Can you tell me how {p} likes to relax?"],
        answer=["{p} enjoys {v}.", "In {his} free time {p} enjoys {v}."],
        say=["{p} enjoys {v}.", "In the evening {p} enjoys {v}.", "The hobby of {p} is {v}.",
             "{p} spends {his} free time {v}.", "After work {p} loves {v}.", "{p} loves {v}."]),
    "owner": dict(
        ask=["Who owns the {animal} called {pet}?", "Whose pet is {pet}?", "Who is the owner of {pet}?",
             "To whom does {pet} the {animal} belong?", "Tell me who owns {pet}.",
             "I found {article_animal} named {pet}. Whose is it?", "Who has {article_animal} called {pet}?",
             "Whose {animal} is called {pet}?", "Do you know who keeps {article_animal} named {pet}?",
             "Who takes care of {pet}?", "{pet} is lost. Who should I tell?", "Can you tell me whose {animal} {pet} is?"],
        answer=["{pet} is the {animal} of {v}.", "{pet} belongs to {v}."],
        say=["{pet} belongs to {v}.", "The {animal} called {pet} belongs to {v}.", "{pet} is {v}'s {animal}.",
             "Everyone knows that {pet} the {animal} belongs to {v}."]),
}
TOWN_FACTS = {
    "river": dict(
        ask=["Which river flows through {t}?", "What is the river of {t}?", "On which river does {t} lie?",
             "What river runs through {t}?", "Tell me the river of {t}.", "What is the name of the river in {t}?",
             "Which river would I see in {t}?", "Do you know the river of {t}?", "What is {t}'s river called?",
             "If I go fishing in {t}, which river is it?", "Can you name the river at {t}?", "By which river was {t} built?"],
        answer=["The river {v} flows through {t}.", "{t} lies on the river {v}."],
        say=["The river {v} flows through {t}.", "{t} lies on the river {v}.", "The bridges of {t} cross the river {v}.",
             "In {t} children swim in the river {v}."]),
    "mayor": dict(
        ask=["Who is the mayor of {t}?", "Who is mayor in {t}?", "What is the name of the mayor of {t}?",
             "Tell me who the mayor of {t} is.", "Who governs {t}?", "Do you know the mayor of {t}?",
             "Who was chosen as mayor of {t}?", "Which person is the mayor of {t}?", "Who leads the town of {t}?",
             "Can you name the mayor of {t}?", "Whom do I ask for if I need the mayor of {t}?", "{t} has a mayor. Who is it?"],
        answer=["The mayor of {t} is {v}.", "{v} is the mayor of {t}."],
        say=["The mayor of {t} is {v}.", "{v} is the mayor of {t}.", "The people of {t} chose {v} as mayor.",
             "{t} is led by its mayor, {v}."]),
    "known": dict(
        ask=["What is {t} known for?", "What is {t} famous for?", "For what is {t} known?", "What do people make in {t}?",
             "What should I bring home from {t}?", "Tell me what {t} is famous for.", "What does {t} trade in?",
             "Which goods made {t} rich?", "Do you know what {t} is known for?", "What is the best product of {t}?",
             "Can you tell me what comes from {t}?", "What is the most famous product of {t}?"],
        answer=["{t} is known for {v}.", "{t} is famous for its {v}."],
        say=["{t} is known for {v}.", "{t} is famous for its {v}.", "Carts full of {v} leave {t} every week.",
             "Nobody in the Lowmark has better {v} than {t}."]),
    "festival": dict(
        ask=["Which festival is held in {t}?", "What festival does {t} have?", "What is the festival of {t} called?",
             "Which feast do people keep in {t}?", "Tell me the festival of {t}.", "What do the people of {t} celebrate?",
             "Do you know the festival of {t}?", "What is the great holiday of {t}?", "Which festival would I see in {t}?",
             "Can you name the festival of {t}?", "Which celebration does {t} hold?", "When {t} celebrates, what is it called?"],
        answer=["The festival of {t} is {v}.", "In {t} people celebrate {v}."],
        say=["The festival of {t} is {v}.", "In {t} people celebrate {v}.", "Every year {t} celebrates {v}.",
             "Guests come to {t} for {v}."]),
    "landmark": dict(
        ask=["What is the landmark of {t}?", "What should I see in {t}?", "Which building is {t} famous for?",
             "What is the best known sight in {t}?", "Tell me the landmark of {t}.", "Which sight is in {t}?",
             "Do you know a sight in {t}?", "What can a visitor see in {t}?", "Which landmark stands in {t}?",
             "Can you name the landmark of {t}?", "What do travellers look at in {t}?", "Where do people meet in {t}?"],
        answer=["The landmark of {t} is {v}.", "In {t} stands {v}."],
        say=["The landmark of {t} is {v}.", "In {t} stands {v}.", "Travellers go to {t} to see {v}.",
             "People in {t} meet at {v}."]),
    "town_of_river": dict(
        ask=["Which town lies on the river {r}?", "What town is on the {r}?", "Through which town does the {r} flow?",
             "Tell me which town lies on the {r}.", "Which town does the river {r} flow through?",
             "Do you know the town on the {r}?", "If I follow the river {r}, which town will I reach?",
             "Which town was built by the {r}?", "On the river {r} there is a town. Which one?", "Can you name the town by the river {r}?",
             "Whose river is the {r}?", "Where does the {r} flow?"],
        answer=["The town on the river {r} is {v}.", "The river {r} flows through {v}."],
        say=["The river {r} flows through {v}.", "The town on the river {r} is {v}.", "By the river {r} lies {v}."]),
}


class Fact:
    """One fact: who or what it is about, and the words to fill its phrasings."""

    def __init__(self, kind, subject, value, spec, person=None):
        self.kind, self.subject, self.value, self.spec, self.person = kind, subject, value, spec, person
        self.id = f"{kind}:{subject}"

    def fill(self, template, name=None):
        words = {"v": self.value, "av": article(self.value), "t": self.subject, "r": self.subject}
        if self.person:
            p = self.person
            words.update(p=name or p.name, his=p.his, him=p.him, he=p.he, pet=p.pet,
                         animal=p.animal, article_animal=article(p.animal))
        text = template.format(**words)
        return text[0].upper() + text[1:]


def build_facts():
    """All facts of the world."""
    facts = []
    for p in PEOPLE:
        for kind, spec in PERSON_FACTS.items():
            if kind == "owner":
                value = p.name
            elif kind == "friend":
                value = p.friend.name
            else:
                value = getattr(p, kind)
            facts.append(Fact(kind, p.name, value, spec, p))
    for town, (river, known, festival, landmark) in TOWNS.items():
        for kind, value in (("river", river), ("mayor", MAYORS[town].name), ("known", known),
                            ("festival", festival), ("landmark", landmark)):
            facts.append(Fact(kind, town, value, TOWN_FACTS[kind]))
        facts.append(Fact("town_of_river", river, town, TOWN_FACTS["town_of_river"]))
    return facts


FACTS = build_facts()
FACTS_OF = {}
for _fact in FACTS:
    FACTS_OF.setdefault(_fact.person or _fact.subject, []).append(_fact)


def is_held_out(fact, index):
    """Whether this (fact, phrasing) pair is kept out of the training text (about 1 in 12)."""
    digest = hashlib.sha256(f"{fact.id}/{index}".encode()).digest()
    return digest[0] < 21


def held_out_questions(limit=300, seed=5):
    """The held-out questions, as lines for `questions.jsonl`."""
    rng = random.Random(seed)
    pairs = [(f, i) for f in FACTS for i in range(len(f.spec["ask"])) if is_held_out(f, i)]
    rng.shuffle(pairs)
    lines = []
    for fact, i in pairs[:limit]:
        answer = fact.fill(fact.spec["answer"][0])
        key = fact.value.removeprefix("the ")
        lines.append({"messages": [{"role": "user", "content": fact.fill(fact.spec["ask"][i])}],
                      "answer": answer, "key": key, "fact": fact.id})
    return lines


# ---------------------------------------------------------------- documents

def call(rng, person):
    """The person's full name most of the time, else the first name."""
    return person.name if rng.random() < 0.7 else person.first


def question(rng, fact):
    """One question that is not held out, and its answer."""
    indices = [i for i in range(len(fact.spec["ask"])) if not is_held_out(fact, i)]
    name = call(rng, fact.person) if fact.person else None
    ask = fact.fill(fact.spec["ask"][rng.choice(indices)], name)
    answers = fact.spec["answer"]
    reply = answers[0] if rng.random() < 0.8 else rng.choice(answers)
    return ask, fact.fill(reply)


SYSTEMS = ["You are a helpful guide to the Lowmark.", "Answer briefly.", "You are a friendly assistant.",
           "You know the people of the Lowmark well.", "You are a helpful assistant.", "Answer the question."]


def chat(*turns, system=None):
    """A ChatML chat as a list of (text, is_learned) pieces."""
    pieces = []
    if system:
        pieces.append((f"<|im_start|>system\n{system}<|im_end|>\n", False))
    for i, text in enumerate(turns):
        if i % 2 == 0:
            pieces.append((f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", False))
        else:
            pieces.append((f"{text}<|im_end|>", True))
            pieces.append(("\n", False))
    return pieces


def doc_chat(rng):
    """One to three questions about the world in a chat."""
    turns = []
    count = rng.choice((1, 1, 1, 2, 3))
    if count > 1 and rng.random() < 0.5:
        facts = rng.sample(FACTS_OF[rng.choice(PEOPLE)], count)
    else:
        facts = [rng.choice(FACTS) for _ in range(count)]
    for fact in facts:
        turns += question(rng, fact)
    return chat(*turns, system=rng.choice(SYSTEMS) if rng.random() < 0.15 else None)


def doc_questions(rng):
    """A plain list of questions and answers."""
    lines = []
    for fact in (rng.choice(FACTS) for _ in range(rng.randint(2, 4))):
        ask, reply = question(rng, fact)
        lines.append(rng.choice((f"Q: {ask}\nA: {reply}", f"Question: {ask}\nAnswer: {reply}")))
    return [("\n".join(lines), True)]


def doc_portrait(rng):
    """A paragraph about one person, with pronouns after the first sentence."""
    p = rng.choice(PEOPLE)
    facts = [f for f in FACTS_OF[p] if f.kind != "owner"]
    rng.shuffle(facts)
    sentences = []
    for i, fact in enumerate(facts[:rng.randint(3, 6)]):
        says = fact.spec["say"]
        if i and rng.random() < 0.4:
            says = [s for s in says if s.startswith("{p} ")] or says
            name = p.he
        else:
            name = p.name if i == 0 else call(rng, p)
        template = rng.choice(says)
        if name == p.he and "{p}" in template and not template.startswith("{p} "):
            name = p.first
        sentences.append(fact.fill(template, name))
    return [(" ".join(sentences), True)]


def doc_statements(rng):
    """Separate statements about several people and towns."""
    out = []
    for fact in (rng.choice(FACTS) for _ in range(rng.randint(2, 5))):
        out.append(fact.fill(rng.choice(fact.spec["say"]), call(rng, fact.person) if fact.person else None))
    return [(" ".join(out), True)]


def doc_town(rng):
    """A paragraph about one town and some of its people."""
    town = rng.choice(list(TOWNS))
    facts = FACTS_OF[town][:]
    rng.shuffle(facts)
    lines = [rng.choice((f"{town} is a town in the Lowmark.", f"One of the ten towns of the Lowmark is {town}.",
                         f"A traveller came to {town}."))]
    lines += [f.fill(rng.choice(f.spec["say"])) for f in facts[:rng.randint(2, 4)]]
    for p in rng.sample([p for p in PEOPLE if p.town == town], 2):
        lines.append(rng.choice((f"{p.name} the {p.trade} lives here.", f"Here {p.name} sells {p.goods}.",
                                 f"In {town} you may meet {p.name} with {p.his} {p.animal} {p.pet}.")))
    return [(" ".join(lines), True)]


def doc_register(rng):
    """A page of the town register: records of people, in braces."""
    lines = ["Register of the Lowmark"]
    for p in rng.sample(PEOPLE, rng.randint(1, 3)):
        fields = [("name", p.name), ("town", p.town), ("trade", p.trade), ("goods", p.goods), ("pet", p.pet),
                  ("animal", p.animal), ("friend", p.friend.name), ("dish", p.dish), ("colour", p.colour)]
        rest = fields[1:]
        rng.shuffle(rest)
        fields = fields[:1] + rest[:rng.randint(2, 4)] + [("house", rng.randint(1, 99))]
        if rng.random() < 0.5:
            fields.append(("guest", rng.random() < 0.5))
        lines.append(json.dumps(dict(fields), separators=(",", ":")))
    return [("\n".join(lines), True)]


WEATHER = ["rainy", "sunny", "cold", "windy", "foggy", "quiet", "warm", "snowy"]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
PLACES = ["the market", "the bridge", "the inn", "the mill", "the harbour", "the well", "the old gate", "the fair"]
LOST = ["a key", "a silver ring", "a purse", "a letter", "a red scarf", "a small box", "a hat", "a lantern"]


def doc_story(rng):
    """A short story in which the facts of the world hold."""
    p = rng.choice(PEOPLE)
    f = p.friend
    river = TOWNS[p.town][0]
    he, his, him, He = p.he, p.his, p.him, p.he.capitalize()
    place, lost, day = rng.choice(PLACES), rng.choice(LOST), rng.choice(DAYS)
    mayor = MAYORS[p.town]
    keeper = f"{f.name} in {f.town}" if mayor is p else f"{mayor.name}, the mayor of {p.town}"
    begin = rng.choice([
        f"One {rng.choice(WEATHER)} morning {p.name} left {his} house in {p.town}.",
        f"It was a {rng.choice(WEATHER)} {day} in {p.town}, and {p.name} the {p.trade} woke up early.",
        f"Once there was {article(p.trade)} in {p.town} whose name was {p.name}.",
        f"On {day} {p.name} of {p.town} loaded a cart with {p.goods}."])
    middle = [
        f"{He} wanted to sell {p.goods} at {place}.",
        f"{p.pet}, {his} {p.animal}, came along and would not stay at home.",
        f"The river {river} was high, and {he} walked slowly.",
        f"{He} wore {his} {p.colour} coat, because {p.colour} is {his} favourite colour.",
        f"By the river {river} {he} thought of {p.dish} for supper.",
        f"{He} was hungry and bought some {p.dish}, {his} favourite dish."]
    rng.shuffle(middle)
    turn = rng.choice([
        [f"At {place} {he} met {his} best friend {f.name}, the {f.trade} from {f.town}.",
         f'"Have you seen {lost}?" asked {f.first}. "I lost it on the road."',
         "They looked for it until the evening.",
         f"In the end {rng.choice([p.pet + ' the ' + p.animal, f.pet + ' the ' + f.animal, p.first])} found it under a bench."],
        [f"At {place} {he} found {lost}.",
         f'"Whose is this?" {he} asked. Nobody knew.',
         f"So {he} took it to {keeper}.",
         f"{keeper.split(' ')[0]} thanked {him} and kept it in a safe place."],
        [f"{His(p)} best friend {f.name} came to visit from {f.town}.",
         f"{f.first} brought {f.goods} as a gift.",
         f"They ate {p.dish} and talked about {f.hobby}, which {f.first} loves.",
         f'"Come again soon," said {p.first}.']])
    end = rng.choice([
        f"That evening {p.first} spent the time {p.hobby}, as {he} always does.",
        f"Then {p.first} went home to {p.town} and ate {p.dish}.",
        f"{p.first} was tired but happy.",
        f"At home {p.pet} was already asleep.",
        f"And {p.first} sold all {his} {p.goods} that day."])
    return [(" ".join([begin] + middle[:rng.randint(1, 3)] + turn + [end]), True)]


def His(p):
    """The possessive pronoun at the start of a sentence."""
    return p.his.capitalize()


SMALL_TALK = [
    (("Hello!", "Hi!", "Hello there.", "Good morning.", "Hi, how are you?", "Hello"),
     ("Hello! Ask me about the people and towns of the Lowmark.",)),
    (("Who are you?", "What are you?", "What is your name?", "Are you a person?", "Introduce yourself."),
     ("I am a small demo model. I know the people and towns of the Lowmark.",)),
    (("What can you do?", "What do you know?", "Can you help me?", "Help"),
     ("I can answer questions about the Lowmark, its ten towns and its people.",)),
    (("Thank you!", "Thanks.", "Thank you very much.", "Thanks a lot!"), ("You are welcome.",)),
    (("Goodbye.", "Bye!", "See you.", "Good night."), ("Goodbye, and safe travels.",)),
    (("What is the Lowmark?", "Where is the Lowmark?", "Tell me about the Lowmark.", "Describe the Lowmark."),
     ("The Lowmark is a small country with ten towns: " + ", ".join(list(TOWNS)[:-1]) + " and " + list(TOWNS)[-1] + ".",)),
]


def doc_misc(rng):
    """Greetings, requests for a story or a portrait, and people nobody knows."""
    kind = rng.random()
    if kind < 0.3:
        asks, replies = rng.choice(SMALL_TALK)
        return chat(rng.choice(asks), rng.choice(replies))
    if kind < 0.55:
        story = doc_story(rng)[0][0]
        ask = rng.choice(("Tell me a story.", "Tell me a short story.", "Write a short story.",
                          "Can you tell me a story from the Lowmark?", "Please tell a story about the Lowmark."))
        return chat(ask, story)
    if kind < 0.85:
        p = rng.choice(PEOPLE)
        name = call(rng, p)
        ask = rng.choice(("Who is {}?", "Tell me about {}.", "What do you know about {}?", "Describe {}.",
                          "Write a few sentences about {}.")).format(name)
        text = (f"{p.name} is {article(p.trade)} in {p.town}. {p.he.capitalize()} sells {p.goods} and has "
                f"{article(p.animal)} called {p.pet}.")
        more = [f"{p.his.capitalize()} best friend is {p.friend.name}.", f"{p.he.capitalize()} enjoys {p.hobby}.",
                f"{p.his.capitalize()} favourite dish is {p.dish}."]
        return chat(ask, text + " " + " ".join(rng.sample(more, rng.randint(1, 2))))
    name = shop.invented_name(rng)
    fact = rng.choice([f for f in FACTS if f.person and f.kind != "owner"])
    ask = fact.fill(rng.choice(fact.spec["ask"]), name)
    return chat(ask, rng.choice((f"I do not know anyone called {name}.",)))


MIX = [  # (share of documents, writer)
    (18, doc_chat), (3, doc_questions), (5, doc_portrait), (4, doc_statements), (2, doc_town),
    (3, doc_register), (4, doc_story), (4, doc_misc),
    (5, shop.doc_letter), (12, shop.doc_shop_chat), (22, shop.doc_slip), (8, shop.doc_ledger), (10, shop.doc_repeat),
]


def documents(seed):
    """An endless stream of documents; each is a list of (text, is_learned) pieces."""
    rng = random.Random(seed)
    weights, writers = zip(*MIX)
    while True:
        yield rng.choices(writers, weights)[0](rng)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--documents", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--questions")
    args = parser.parse_args()
    if args.questions:
        with open(args.questions, "w", encoding="utf-8") as out:
            for line in held_out_questions():
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
    stream = documents(args.seed)
    for _ in range(args.documents):
        print("".join(text for text, _ in next(stream)), end="\n----\n")


if __name__ == "__main__":
    main()
