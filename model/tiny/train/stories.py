"""Stories, poems and descriptions about any subject, built from a small grammar."""

from words import ADJECTIVES, COLOURS, HEROES, NAMES, PLACES


def article(noun):
    """The indefinite article of an English noun phrase."""
    if noun[:1].lower() in "aeio" or noun.startswith("honest") or noun.startswith("um") or noun.startswith("un") and not noun.startswith("uni"):
        return "an"
    return "a"


FRIENDS = ["an old owl", "a friendly mouse", "a little bird", "a wise turtle", "a kind old woman", "a young girl",
           "a boy with a red hat", "a funny frog", "a shy rabbit", "a tall man with a lamp"]
LOST = ["a golden key", "a small red box", "an old map", "a silver bell", "a letter without a name", "a blue stone",
        "a broken toy", "a book with empty pages", "a warm coat", "a basket of apples"]
WEATHER = ["The sun was shining.", "It was a cold morning.", "Soft rain was falling.", "The wind was strong that day.",
           "It was a clear and quiet night.", "Snow lay on the ground."]
WISHES = ["to see the sea", "to find a friend", "to learn to sing", "to fly", "to help others", "to see the world",
          "to build a house", "to climb the highest hill", "to read every book", "to bake the best bread"]
MORALS = ["From that day on, they were the best of friends.", "And they lived happily for many years.",
          "That night, everyone slept well.", "And the people still tell this story today.",
          "After that, nobody was ever lonely again.", "It had been a very good day."]


def story(rng, noun, name=None):
    """A story of about eight sentences about noun, who may have a name."""
    adj = rng.choice(ADJECTIVES)
    place, friend, lost, wish = rng.choice(PLACES), rng.choice(FRIENDS), rng.choice(LOST), rng.choice(WISHES)
    who = name if name else "the " + noun
    cap = who[0].upper() + who[1:]
    phrase = f"{adj} {noun}"
    first = f"Once upon a time, there was {article(phrase)} {phrase}"
    first += f" named {name}. {cap} lived {place}." if name else f". It lived {place}."
    plots = [
        f"{cap} wanted {wish}, but did not know how. One day, {who} met {friend} on the road. "
        f"\"I can help you,\" said {the(friend)}. They walked together for three days and three nights. "
        f"In the end, the wish came true.",
        f"One day, {who} found {lost} under a tree. {cap} asked everyone in the place, but nobody knew whose it was. "
        f"Then came {friend}. \"That is mine!\" said {the(friend)}. \"Thank you for keeping it safe.\" "
        f"As a reward, they shared a big cake.",
        f"{rng.choice(WEATHER)} {cap} went for a walk and got lost. It grew dark, and {who} was afraid. "
        f"Then {friend} came with a light and showed the way home. {cap} said thank you and made some hot soup for both of them.",
        f"One night, there was a great storm. {cap} heard a voice outside and opened the door. It was {friend}, cold and wet. "
        f"\"Come in,\" said {who}, \"there is room for two.\" In the morning, the sun came out again.",
        f"Every morning, {who} worked hard, and every evening {who} was alone. One day, {friend} asked for help. "
        f"{cap} stopped working and helped at once. Soon the work was done, and they laughed and danced until night.",
        f"{cap} had a secret: nobody could sing as well. But {who} was too shy to sing for others. "
        f"One day, {friend} heard the song and smiled. \"Sing for all of us,\" said {the(friend)}. "
        f"So {who} sang, and everyone was happy.",
    ]
    return f"{first} {rng.choice(plots)} {rng.choice(MORALS)}"


def the(phrase):
    """The definite form of a phrase that begins with a or an; long tails are dropped."""
    head = phrase.split(" with ")[0].split(" ", 1)[1]
    return "the " + head


def poem(rng, noun):
    """Four lines that rhyme."""
    colour = rng.choice(COLOURS)
    return rng.choice([
        f"A little {noun} went out one day,\nto see the world and sing and play.\nIt saw the sun, it saw the sea,\nand came back home in time for tea.",
        f"The {noun} sat beneath a tree,\nas quiet as can be.\nIt watched the clouds, it watched the light,\nand fell asleep at night.",
        f"I had a {noun}, {colour} and bright,\nit kept me company at night.\nAnd when the morning sun came through,\nit said to me: good day to you.",
        f"Oh {noun}, dear {noun}, where have you been?\nI saw the fields so wide and green.\nOh {noun}, dear {noun}, what did you do?\nI picked some flowers just for you.",
    ])


INVENTED_START = "b c d f g h k l m n p r s t v w z br cr dr fl gr pl st tr sh".split()
INVENTED_MIDDLE = "a e i o u ai ee oo ou".split()
INVENTED_END = "b d g k l m n p r s t x ck ng nt st ple der ter mer ling".split()


def invented(rng):
    """A word that exists nowhere, so that subjects must be copied and cannot be learned by heart."""
    word = rng.choice(INVENTED_START) + rng.choice(INVENTED_MIDDLE) + rng.choice(INVENTED_END)
    if rng.random() < 0.5:
        word = rng.choice(INVENTED_START) + rng.choice(INVENTED_MIDDLE) + word
    return word


def subject(rng):
    """Somebody or something a story can be about."""
    return rng.choice(HEROES) if rng.random() < 0.7 else invented(rng)


def person(rng):
    return rng.choice(NAMES) if rng.random() < 0.75 else invented(rng).capitalize()
