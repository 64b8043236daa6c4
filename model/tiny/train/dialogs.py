"""Conversations and plain texts for tiny, drawn from one random generator."""

import knowledge
import quire
from stories import article, invented, person, poem, story, subject
from words import (ANIMALS, CAPITALS, COLOURS, DAYS, HEROES, LISTS, MONTH_DAYS, MONTHS, NAMES, NUMBERS, OPPOSITES,
                   THING_COLOURS, UNKNOWN)


def cap(text):
    return text[:1].upper() + text[1:]


def qa(table):
    """A topic that asks one of a table's questions."""
    def topic(rng):
        questions, answers = rng.choice(table)
        return [(rng.choice(questions), rng.choice(answers))]
    return topic


def things(rng):
    name, text = rng.choice(list(knowledge.THINGS.items()))
    bare = name.split(" ", 1)[1] if name.split(" ")[0] in ("a", "an", "the") else name
    ask = rng.choice([f"What is {name}?", f"Tell me about {name}.", f"Explain {name}.", f"What is {name}?", f"Describe {name}.",
                      f"Can you explain what {name} is?", f"What do you know about {name}?", f"{cap(bare)}?",
                      f"What's {name}?", f"Tell me something about {name}."])
    return [(ask, text)]


def how_to(rng):
    questions, steps = rng.choice(knowledge.HOW_TO)
    lines = "\n".join(f"{i}. {s}" for i, s in enumerate(steps, 1))
    return [(rng.choice(questions), f"Here is what you can do:\n{lines}")]


def colours(rng):
    thing, colour, note = rng.choice(THING_COLOURS)
    ask = rng.choice([f"What colour is {thing}?", f"What color is {thing}?", f"Which colour does {thing} have?",
                      f"Tell me the colour of {thing}."])
    if rng.random() < 0.3:
        return [(f"Is {thing} {colour}?", f"Yes, {thing} is {colour}" + (f" {note}." if note and not note.startswith(("which", "although", "and")) else "."))]
    sep = ", " if note.startswith(("which", "although")) else " "
    return [(ask, f"{cap(thing)} is {colour}{sep + note if note else ''}.")]


def capitals(rng):
    country, city = rng.choice(CAPITALS)
    way = rng.random()
    if way < 0.7:
        ask = rng.choice([f"What is the capital of {country}?", f"Which city is the capital of {country}?", f"Capital of {country}?",
                          f"Do you know the capital of {country}?", f"Tell me the capital of {country}.", f"What's the capital of {country}?",
                          f"What is {country}'s capital?", f"Name the capital of {country}."])
        turns = [(ask, f"The capital of {country} is {city}{'' if city.endswith('.') else '.'}")]
        if rng.random() < 0.3:
            other, town = rng.choice(CAPITALS)
            turns.append((rng.choice([f"And of {other}?", f"And {other}?", f"What about {other}?"]),
                          f"The capital of {other} is {town}{'' if town.endswith('.') else '.'}"))
        return turns
    if country in ("England", "Scotland"):
        return [(f"Where is {city}?", f"{city} is a city in {country}.")]
    ask = rng.choice([f"Where is {city}?", f"In which country is {city}?", f"{city} is the capital of which country?", f"What is {city}?"])
    return [(ask, f"{city} is the capital of {country}.")]


def opposites(rng):
    a, b = rng.choice(OPPOSITES)
    if rng.random() < 0.4 and sum(b in pair for pair in OPPOSITES) == 1:
        a, b = b, a
    ask = rng.choice([f"What is the opposite of {a}?", f"What's the opposite of \"{a}\"?", f"Give me the opposite of {a}.",
                      f"Opposite of {a}?", f"Which word means the opposite of {a}?", f"What is the contrary of {a}?"])
    return [(ask, f"The opposite of {a} is {b}.")]


def number(rng, n, words):
    return NUMBERS[n] if words and n <= 20 else str(n)


def sums(rng):
    words = rng.random() < 0.25
    way = rng.random()
    if way < 0.5:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if rng.random() < 0.5:
            a, b = rng.randint(0, 10), rng.randint(0, 10)
        sign, word, c = "+", "plus", a + b
    elif way < 0.75:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        sign, word, c = "-", "minus", a - b
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        sign, word, c = rng.choice(["*", "x"]), "times", a * b
    x, y = number(rng, a, words), number(rng, b, words)
    expr = f"{x} {word} {y}" if words or rng.random() < 0.4 else f"{x} {sign} {y}" if rng.random() < 0.75 else f"{x}{sign}{y}"
    ask = rng.choice([f"What is {expr}?", f"What is {expr}?", f"{expr}", f"{expr} = ?", f"How much is {expr}?", f"Calculate {expr}.",
                      f"What's {expr}?", f"Can you tell me what {expr} is?", f"{expr}?"])
    return [(ask, f"{cap(x)} {word} {y} is {number(rng, c, words)}.")]


def big_sums(rng):
    a, b = rng.randint(21, 9999), rng.randint(2, 9999)
    if rng.random() < 0.5:
        a, b = b, a
    ask = rng.choice(["What is {}?", "{}", "Calculate {}.", "How much is {}?"]).format(
        rng.choice([f"{a} + {b}", f"{a} * {b}", f"{a} - {b}", f"{a} / {b}", f"{a} plus {b}", f"{a} times {b}", f"{a}+{b}"]))
    return [(ask, "These numbers are too big for me. I can only do small sums with numbers up to twenty.")]


def counting(rng):
    a = 1 if rng.random() < 0.6 else rng.randint(0, 20)
    b = a + rng.randint(2, 11)
    if rng.random() < 0.2:
        words = ", ".join(str(n) for n in range(b, a - 1, -1))
        return [(rng.choice([f"Count down from {b} to {a}.", f"Count backwards from {b} to {a}."]), words + ".")]
    words = ", ".join(str(n) for n in range(a, b + 1))
    ask = rng.choice([f"Count from {a} to {b}.", f"Can you count from {a} to {b}?"] + ([f"Count to {b}.", f"Can you count to {b}?"] if a == 1 else []))
    return [(ask, words + ".")]


def compare(rng):
    a, b = rng.sample(range(0, 101), 2)
    ask = rng.choice([f"Which is bigger, {a} or {b}?", f"Is {a} bigger than {b}?", f"Which number is smaller, {a} or {b}?",
                      f"What comes after {a}?", f"Which number comes after {a}?", f"What comes before {a + 1}?"])
    if "after" in ask:
        return [(ask, f"The number after {a} is {a + 1}.")]
    if "before" in ask:
        return [(ask, f"The number before {a + 1} is {a}.")]
    if ask.startswith("Is"):
        return [(ask, f"Yes, {a} is bigger than {b}." if a > b else f"No, {a} is smaller than {b}.")]
    if "smaller" in ask:
        return [(ask, f"{min(a, b)} is smaller than {max(a, b)}.")]
    return [(ask, f"{max(a, b)} is bigger than {min(a, b)}.")]


def days(rng):
    i = rng.randrange(7)
    day, nxt, prev = DAYS[i], DAYS[(i + 1) % 7], DAYS[i - 1]
    return [rng.choice([
        (f"What day comes after {day}?", f"The day after {day} is {nxt}."),
        (f"Which day is after {day}?", f"The day after {day} is {nxt}."),
        (f"What day comes before {day}?", f"The day before {day} is {prev}."),
        (f"If today is {day}, what day is tomorrow?", f"If today is {day}, then tomorrow is {nxt}."),
        (f"Today is {day}. What day was yesterday?", f"If today is {day}, then yesterday was {prev}."),
        ("How many days are in a week?", "A week has seven days."),
        (rng.choice(["Name the days of the week.", "What are the days of the week?", "List the days of the week."]),
         "The days of the week are " + ", ".join(DAYS[:6]) + " and Sunday."),
        (f"Is {day} a weekend day?", f"Yes, {day} is part of the weekend." if i > 4 else f"No, {day} is not part of the weekend."),
    ])]


def months(rng):
    i = rng.randrange(12)
    m, nxt, prev = MONTHS[i], MONTHS[(i + 1) % 12], MONTHS[i - 1]
    season = ["winter", "spring", "summer", "autumn"][(i + 1) // 3 % 4]
    length = f"{m} has {MONTH_DAYS[i]} days." if i != 1 else "February has 28 days, and 29 in a leap year."
    return [rng.choice([
        (f"What month comes after {m}?", f"The month after {m} is {nxt}."),
        (f"Which month is before {m}?", f"The month before {m} is {prev}."),
        (f"How many days does {m} have?", length), (f"How many days are in {m}?", length),
        (f"In which season is {m}?", f"In the north, {m} is in {season}."),
        ("How many months are in a year?", "A year has twelve months."),
        ("How many days are in a year?", "A year has 365 days, and a leap year has 366."),
        (rng.choice(["Name the months.", "List the months of the year.", "What are the months of the year?"]),
         "The months are " + ", ".join(MONTHS[:11]) + " and December."),
    ])]


def animals(rng):
    name, (kind, sound, food, home, legs, young, plural) = rng.choice(list(ANIMALS.items()))
    a = f"{article(name)} {name}"
    says = f"{cap(a)} is almost silent." if sound == "silence" else f"{cap(a)} says {sound}." if sound in (
        "woof", "meow", "moo", "neigh", "baa", "oink", "quack", "cluck", "hoot") else f"The sound of {a} is called a {sound}."
    count = "no legs" if legs == 0 else f"{NUMBERS[legs]} legs"
    other = rng.choice(["mammal", "bird", "fish", "insect", "reptile"])
    return [rng.choice([
        (rng.choice([f"What sound does {a} make?", f"What does {a} say?", f"What noise does {a} make?"]), says),
        (rng.choice([f"What does {a} eat?", f"What do {plural} eat?", f"What is the food of {a}?"]), f"{cap(plural)} eat {food}."),
        (rng.choice([f"Where does {a} live?", f"Where do {plural} live?"]), f"{cap(plural)} live {home}."),
        (rng.choice([f"How many legs does {a} have?", f"How many legs do {plural} have?"]), f"{cap(a)} has {count}."),
        (rng.choice([f"What is a baby {name} called?", f"What do you call a young {name}?"]),
         f"A young {name} is called {article(young)} {young}."),
        (rng.choice([f"What is {a}?", f"Tell me about {plural}.", f"Tell me about the {name}.", f"What do you know about {plural}?",
                     f"Describe {a}.", f"Tell me something about {plural}."]),
         f"{cap(a)} is {article(kind)} {kind}. It has {count} and eats {food}. {cap(plural)} live {home}."),
        (f"Is {a} {article(other)} {other}?", f"Yes, {a} is {article(kind)} {kind}." if other == kind else
         f"No, {a} is {article(kind)} {kind}."),
    ])]


def lists(rng):
    kind, items = rng.choice(list(LISTS.items()))
    items = items.split(", ")
    n = rng.randint(2, min(6, len(items)))
    picked = rng.sample(items, n)
    word = rng.choice([str(n), NUMBERS[n]])
    ask = rng.choice([f"Name {word} {kind}.", f"List {word} {kind}.", f"Give me {word} {kind}.", f"Tell me {word} {kind}.",
                      f"Can you name {word} {kind}?", f"Please list {word} {kind}.", f"Write a list of {word} {kind}."])
    joined = ", ".join(picked[:-1]) + " and " + picked[-1]
    if rng.random() < 0.45:
        lines = "\n".join(f"{i}. {cap(p)}" for i, p in enumerate(picked, 1))
        return [(ask, f"Here are {NUMBERS[n]} {kind}:\n{lines}")]
    return [(ask, f"{cap(NUMBERS[n])} {kind} are {joined}.")]


def stories(rng):
    noun = subject(rng)
    name = person(rng) if rng.random() < 0.4 else None
    a = f"{article(noun)} {noun}"
    if name:
        ask = rng.choice([f"Tell me a story about {a} named {name}.", f"Write a story about {name} the {noun}.",
                          f"Tell me a short story about {a} called {name}."])
    else:
        ask = rng.choice([f"Tell me a story about {a}.", f"Write a short story about {a}.", f"Tell me a short story about {a}.",
                          f"Can you tell me a story about {a}?", f"I want a story about {a}.", f"Write a story about {a}.",
                          f"A story about {a}, please.", f"Once upon a time there was {a}. Go on.", f"Make up a story about {a}.",
                          f"Write me a tiny story about {a}."])
    turns = [(ask, story(rng, noun, name))]
    if rng.random() < 0.15:
        other = subject(rng)
        turns.append((rng.choice([f"Now one about {article(other)} {other}.", f"And now about {article(other)} {other}."]), story(rng, other)))
    return turns


def any_story(rng):
    noun = rng.choice(HEROES)
    name = rng.choice(NAMES) if rng.random() < 0.5 else None
    ask = rng.choice(["Tell me a story.", "Write a story.", "Tell me a short story.", "Do you know a story?", "A story, please.",
                      "Tell me another story.", "Another one, please.", "One more story.", "Tell me a bedtime story.", "Yes, tell me a story."])
    return [(ask, story(rng, noun, name))]


def poems(rng):
    noun = subject(rng)
    if rng.random() < 0.3:
        return [(rng.choice(["Write a poem.", "Tell me a poem.", "Do you know a poem?"]), poem(rng, rng.choice(HEROES)))]
    a = f"{article(noun)} {noun}"
    ask = rng.choice([f"Write a poem about {a}.", f"Write a short poem about {a}.", f"A poem about {a}, please.", f"Tell me a poem about {a}."])
    return [(ask, poem(rng, noun))]


def names(rng):
    who = person(rng)
    tell = rng.choice([f"My name is {who}.", f"I am {who}.", f"Hi, I'm {who}.", f"Hello, my name is {who}!", f"Call me {who}.", f"I'm {who}."])
    turns = [(tell, rng.choice([f"Nice to meet you, {who}! How can I help you?", f"Hello, {who}! It is nice to meet you."]))]
    for _ in range(rng.choice([0, 0, 1, 2])):
        turns += rng.choice(EASY)(rng)
    if rng.random() < 0.7:
        turns.append((rng.choice(["What is my name?", "What's my name?", "Do you know my name?", "Who am I?", "Do you remember my name?"]),
                      f"Your name is {who}."))
    return turns


def no_name(rng):
    return [(rng.choice(["What is my name?", "Do you know my name?", "Who am I?"]), "I do not know your name yet. What is it?")]


def likes(rng):
    what = rng.choice(COLOURS + HEROES + ["music", "books", "tea", "bread", "football", "summer", invented(rng)])
    what = what + "s" if what in HEROES else what
    turns = [(rng.choice([f"I like {what}.", f"I love {what}.", f"I really like {what}."]), rng.choice(
        [f"That is nice! What do you like about {what}?", f"I am glad that you like {what}."]))]
    if rng.random() < 0.6:
        turns.append((rng.choice(["What do I like?", "Do you remember what I like?"]), f"You told me that you like {what}."))
    return turns


def repeat(rng):
    n = rng.randint(1, 6)
    words = " ".join(rng.choice([rng.choice(HEROES), rng.choice(COLOURS), invented(rng), rng.choice(NAMES)]) for _ in range(n))
    return [(rng.choice([f"Repeat after me: {words}", f"Say: {words}", f"Repeat: {words}", f"Please repeat these words: {words}",
                         f"Say \"{words}\"."]), cap(words) + ".")]


def spelling(rng):
    word = rng.choice(HEROES + COLOURS)
    return [(rng.choice([f"Spell {word}.", f"How do you spell {word}?", f"Spell the word {word}."]),
             f"The word {word} is spelled {'-'.join(word.upper())}.")]


def unknown(rng):
    what = rng.choice(UNKNOWN) if rng.random() < 0.7 else rng.choice(
        [invented(rng), invented(rng) + " " + invented(rng), person(rng) + " " + invented(rng).capitalize()])
    ask = rng.choice([
        f"What is {what}?", f"Explain {what}.", f"Tell me about {what}.", f"How does {what} work?", f"Who invented {what}?",
        f"What do you know about {what}?", f"Can you explain {what} to me?", f"Give me a summary of {what}.", f"Why is {what} important?",
        f"What is the history of {what}?", f"Where can I learn about {what}?", f"What do you think about {what}?", f"Write an essay about {what}.",
        f"What is the best book about {what}?", f"When did {what} begin?", f"How much does {what} cost?", f"Who is {what}?"])
    answer = rng.choice([
        f"I am a very small model, and I do not know much about {what}. A bigger model could tell you more.",
        f"I am sorry, but I do not know about {what}. I can tell you a story, name some animals, or explain how Quire works.",
    ])
    return [(ask, answer)]


def puzzling(rng):
    """Input with no meaning that tiny could find."""
    parts = [invented(rng), rng.choice(HEROES), rng.choice(NAMES), rng.choice(COLOURS), str(rng.randint(0, 99999)), "the", "of", "is", "and",
             "asdf", "qwerty", "xyz", "??", "!!!", "...", ":-)", "%$#", "{}", "x=1", "<b>", "lorem ipsum", "\u00e4\u00f6\u00fc", "\u4f60\u597d",
             "\u043f\u0440\u0438\u0432\u0435\u0442", "\U0001f600", "\U0001f44d", "caf\u00e9", "\u00bfqu\u00e9?"]
    text = " ".join(rng.choice(parts) for _ in range(rng.randint(1, 6)))
    return [(text, rng.choice(["I am sorry, I did not understand that. Could you say it in simple words?",
                               "I do not understand. Please ask me something simple."]))]


def more(rng):
    """A fact with a request for another one."""
    topic = rng.choice([qa(quire.QA), things, animals])
    return topic(rng) + [(rng.choice(["Tell me more.", "More, please.", "Go on.", "Can you say more?"]),
                          rng.choice(["That is all I know about it. I am a very small model.", "I do not know more about it. What else would you like to know?"]))]


TALK, QUIRE = qa(knowledge.SMALL_TALK), qa(quire.QA)
EASY = [TALK, QUIRE, things, colours, capitals, opposites, sums, days, animals, lists]
TOPICS = [(TALK, 12), (QUIRE, 16), (things, 8), (how_to, 2), (colours, 3), (capitals, 7), (opposites, 5), (sums, 10), (big_sums, 1),
          (counting, 3), (compare, 3), (days, 2), (months, 3), (animals, 8), (lists, 8), (stories, 13), (any_story, 3), (poems, 4),
          (names, 5), (no_name, 0.5), (likes, 3), (repeat, 2), (spelling, 2), (unknown, 6), (puzzling, 2), (more, 2)]
# In the last part of the training the topics that must be learned by heart come more often.
LATE = {sums: 25, capitals: 12, lists: 12, TALK: 16, QUIRE: 18, compare: 5}
SYSTEMS = ["You are a helpful assistant.", "You are a helpful AI assistant.", "You are tiny, a small language model.", "Answer briefly.",
           "Be polite and friendly.", "You are a helpful assistant. Answer in simple English.", "You are a helpful, honest and harmless assistant.",
           "Answer the questions of the user.", "You are an expert. Think step by step.", "Be concise."]
POLITE = [("Can you tell me: ", ""), ("Please tell me: ", ""), ("", " Please answer."), ("I have a question. ", ""), ("Hello! ", ""), ("Hi! ", ""), ("OK. ", ""),
          ("Thanks. ", ""), ("Hello tiny! ", ""), ("", " Thank you!"), ("", " In simple words."), ("", " In one sentence."),
          ("please ", ""), ("", " please"), ("Can you answer this? ", ""), ("Tiny, ", ""), ("So, ", ""), ("And ", "")]


def perturb(rng, text):
    """People are careless: small letters, no full stop, an extra word, a wrong letter."""
    way = rng.random()
    if way < 0.10:
        text = text.lower()
    elif way < 0.16:
        text = text.lower().rstrip("?.!")
    elif way < 0.22:
        text = text.rstrip("?.!")
    elif way < 0.30:
        before, after = rng.choice(POLITE)
        text = before + text + after
    elif way < 0.33 and len(text) > 8:
        i = rng.randrange(1, len(text) - 1)
        if text[i].isalpha():
            text = text[:i] + text[i + 1:]
    if rng.random() < 0.03:
        text = rng.choice([text + " ", " " + text, text + "\n", text.replace(" ", "  ", 1)])
    return text


def conversation(rng, late=False):
    """A list of (role, content), one to five topics long."""
    messages = [("system", rng.choice(SYSTEMS))] if rng.random() < 0.3 else []
    makers, weights = zip(*((m, LATE.get(m, w) if late else w) for m, w in TOPICS))
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 5])):
        for user, assistant in rng.choices(makers, weights)[0](rng):
            exact = user.startswith(("Repeat", "Say", "Please repeat"))
            messages += [("user", user if exact else perturb(rng, user)), ("assistant", assistant)]
    return messages


def plain(rng):
    """Text without a conversation, for prompts that are only to be continued."""
    way = rng.random()
    if way < 0.35:
        return story(rng, subject(rng), person(rng) if rng.random() < 0.4 else None)
    if way < 0.4:
        return poem(rng, subject(rng))
    makers = [QUIRE, things, colours, capitals, opposites, sums, days, months, animals, lists, counting]
    return " ".join(rng.choice(makers)(rng)[0][1] for _ in range(rng.randint(1, 5)))


def chatml(messages):
    return "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
