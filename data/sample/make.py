"""A small data set in E2E's form: tables of invented places to eat, and sentences about them.

A grammar in three steps: draw a table; let a *plan* arrange it; let each slot pick one of its
phrases. A plan works on the slots that are left (`left`, a dict) and takes out each one it puts
into words; `rest` says all that remain. So no slot is lost and none is said twice.

    python data/sample/make.py

writes src1_train.txt, src1_valid.txt and src1_test.txt beside itself.
"""

import random
from pathlib import Path

KEYS = (  # E2E's, in its order
    "name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")

# --------------------------------------------------------------------------------------------------
# The words
# --------------------------------------------------------------------------------------------------

FIRST = ("Amber Bramble Copper Crimson Hazel Ivory Juniper Maple Marble Saffron Silver Tin Velvet "
         "Walnut Wicker Yellow").split()
THINGS = "Badger Fiddle Hare Heron Kettle Lantern Spoon Thistle".split()
ROOMS = "Corner Garden Kitchen Larder".split()
NAMES = [f"The {first} {thing}" for first in FIRST for thing in THINGS]
NAMES += [f"{first} {room}" for first in FIRST for room in ROOMS]
TYPES = ("bistro, brasserie, canteen, diner, food truck, inn, tavern, tea room, "
         "wine bar").split(", ")
FOODS = ("Ethiopian Georgian Greek Korean Lebanese Mexican Moroccan Peruvian Polish Portuguese "
         "Thai Turkish Vietnamese vegan vegetarian").split()
AMOUNTS = ("under £ 10", "£ 10 - 15", "£ 15 - 25", "£ 25 - 40", "over £ 40")
PRICE_WORDS = ("affordable", "cheap", "expensive")
SCORES = ("2 out of 5", "3 out of 5", "4 out of 5")
RATING_WORDS = ("decent", "excellent", "good", "poor")
AREAS = {
    "canal": "by the canal",
    "harbour": "at the harbour",
    "hillside": "on the hillside",
    "market square": "on the market square",
    "north end": "in the north end",
    "old town": "in the old town",
    "seafront": "on the seafront",
    "university quarter": "in the university quarter",
}
FAMILY = {
    "yes": ("is family - friendly", "welcomes families", "is suitable for children"),
    "no": ("is not family - friendly", "does not cater for families",
           "is not suitable for children"),
}
NEARS = (
    "Alder Bridge, Ashdown Theatre, Corbin Station, Fenwick Library, Garrick Hall, Hollis Park, "
    "Linden Gardens, Mercer Lock, Orrin Cathedral, Pell Street, Quarry Hill, Rosewell Market, "
    "Tanner Wharf, Tolland Pier, the Corn Exchange, the Glass Tower, the Old Lighthouse, "
    "the Town Baths"
).split(", ")
VALUES = {
    "Type": TYPES,
    "food": FOODS,
    "price": AMOUNTS + PRICE_WORDS,
    "customer rating": SCORES + RATING_WORDS,
    "area": tuple(AREAS),
    "family friendly": tuple(FAMILY),
    "near": NEARS,
}

# --------------------------------------------------------------------------------------------------
# From slots to phrases
# --------------------------------------------------------------------------------------------------


def an(phrase):
    return ("an " if phrase[0] in "aeiouAEIOU" else "a ") + phrase


def join(*parts):
    """The parts with blanks between them, without those that are empty."""
    return " ".join(filter(None, parts))


def series(parts):
    """The parts as one phrase: "serves Thai food , is cheap and welcomes families"."""
    *most, last = parts
    return f"{' , '.join(most)} and {last}" if most else last


def sentence(*parts):
    text = join(*parts)
    return text[0].upper() + text[1:] + " ."


def place(rng, left):
    """Takes area and near: "on the seafront close to Pell Street"; "" where both are missing."""
    area = AREAS[left.pop("area")] if "area" in left else ""
    if "near" not in left:
        return area
    return join(area, rng.choice(("near", "close to", "not far from")), left.pop("near"))


def noun(rng, left):
    """Takes Type, and sometimes what can stand before it: "a cheap Thai diner"."""
    adjectives = []
    if left.get("price") in PRICE_WORDS and rng.random() < 0.4:
        adjectives.append(left.pop("price"))
    elif left.get("family friendly") == "yes" and rng.random() < 0.4:
        left.pop("family friendly")
        adjectives.append("family - friendly")
    if "food" in left and rng.random() < 0.4:
        adjectives.append(left.pop("food"))
    kind = left.pop("Type", "place" if adjectives else "place to eat")
    return an(join(*adjectives, kind))


def meals(left):
    """Takes price: "meals for under £ 10", "cheap meals"."""
    price = left.pop("price")
    return f"{price} meals" if price in PRICE_WORDS else f"meals for {price}"


def rating(left):
    """Takes the rating: "a customer rating of 4 out of 5", "an excellent customer rating"."""
    value = left.pop("customer rating")
    is_word = value in RATING_WORDS
    return an(f"{value} customer rating") if is_word else f"a customer rating of {value}"


def food(rng, left):
    """Takes food, and price where there is one: "serves cheap Thai food"."""
    dishes = f"{left.pop('food')} {rng.choice(('food', 'dishes'))}"
    price = left.pop("price", "")
    if price in AMOUNTS:
        dishes = f"{dishes} for {price}"
    elif price:
        dishes = f"{price} {dishes}"
    return rng.choice(("serves ", "offers ")) + dishes


def verbs(rng, left):
    """Takes all that is left: a list of verb phrases, "serves Thai food", "welcomes families"."""
    first, said = [], []
    if "Type" in left:
        first.append(join("is", an(left.pop("Type")), place(rng, left)))
    if "food" in left:
        said.append(food(rng, left))
    if "price" in left:
        said.append(rng.choice(("serves ", "offers ")) + meals(left))
    if "customer rating" in left:
        if rng.random() < 0.4:
            said.append(f"is rated {left.pop('customer rating')} by its customers")
        else:
            said.append("has " + rating(left))
    if "family friendly" in left:
        said.append(rng.choice(FAMILY[left.pop("family friendly")]))
    if where := place(rng, left):
        said.append("is " + where)
    if rng.random() < 0.3:
        rng.shuffle(said)
    return first + said


def rest(rng, left, subject="it"):
    """All that is left, in a sentence about `subject`, or in two; "" where nothing is left."""
    said = verbs(rng, left)
    if not said:
        return ""
    if len(said) <= 3:
        return sentence(subject, series(said))
    return join(sentence(subject, series(said[:2])), sentence("it", series(said[2:])))


# --------------------------------------------------------------------------------------------------
# The plans: each arranges a table in its own way, and returns its sentences
# --------------------------------------------------------------------------------------------------


def plain(rng, name, left):
    who = rng.choice(("it", "the " + left.get("Type", "place")))
    return sentence(name, "is", noun(rng, left), place(rng, left)), rest(rng, left, who)


def called(rng, name, left):
    first = sentence("there is", noun(rng, left), "called", name, place(rng, left))
    return first, rest(rng, left)


def place_first(rng, name, left):
    where, what = place(rng, left), noun(rng, left)
    if rng.random() < 0.5:
        first = sentence(where, "there is", what, "called", name)
    else:
        first = sentence(where, "you will find", name, ",", what)
    return first, rest(rng, left)


def food_first(rng, name, left):
    kind = left.pop("food")
    first = sentence("for", kind, "food , try", name, ",", noun(rng, left), place(rng, left))
    return first, rest(rng, left)


def in_commas(rng, name, left):
    what = noun(rng, left)
    where = place(rng, left) if rng.random() < 0.7 else ""
    said = verbs(rng, left)
    if not said:
        return sentence(name, "is", what, where), ""
    more = sentence("it", series(said[3:])) if len(said) > 3 else ""
    return sentence(name, ",", what, where, ",", series(said[:3])), more


def with_what(rng, name, left):
    has = []
    if "price" in left:
        has.append(meals(left))
    if "customer rating" in left:
        has.append(rating(left))
    what, where = noun(rng, left), place(rng, left)
    return sentence(name, "is", what, where, "with", series(has)), rest(rng, left)


def serving(rng, name, left):
    where = place(rng, left) if rng.random() < 0.6 else ""
    return sentence(name, food(rng, left), where), rest(rng, left)


def standing(rng, name, left):
    return sentence(name, "is", place(rng, left)), rest(rng, left)


PLANS = {  # each plan, and the slots of which it needs one
    plain: ("name",),
    called: ("name",),
    in_commas: ("name",),
    place_first: ("area", "near"),
    standing: ("area", "near"),
    food_first: ("food",),
    serving: ("food",),
    with_what: ("price", "customer rating"),
}

# --------------------------------------------------------------------------------------------------
# Tables, and the three files
# --------------------------------------------------------------------------------------------------


def draw_table(rng, name):
    """A table of 3 to 8 slots, the name among them."""
    chosen = rng.sample(KEYS[1:], rng.choice((2, 3, 4, 4, 5, 5, 6, 6, 7)))
    table = {"name": name}
    for key in KEYS:
        if key in chosen:
            table[key] = rng.choice(VALUES[key])
    return table


def describe(rng, table):
    left = dict(table)
    plans = [plan for plan, needs in PLANS.items() if set(needs) & set(table)]
    plan = rng.choice(plans)
    text = join(*plan(rng, left.pop("name"), left))
    assert not left, f"{plan.__name__} does not say {left}"
    return text


def lines_of(rng, table, n):
    """The lines of one table, with n different sentences.

    n is at most 6: the tables of fewest words have no more.
    """
    texts = {}  # a dict keeps the order of writing
    while len(texts) < n:
        texts[describe(rng, table)] = None
    slots = " | ".join(f"{key} : {value}" for key, value in table.items())
    return [f"{slots}||{text} \n" for text in texts]


def make():
    """The lines of the three files, {split: lines}; no table occurs twice.

    Training has 1,000 tables of 2 sentences, validation 60 of 3 or 4, test 60 of 4 to 6.
    """
    rng, tables = random.Random(2021), []
    names = rng.sample(NAMES, len(NAMES))
    known, new = names[:132], {"valid": names[132:162], "test": names[162:]}  # new: 30 for each

    def new_table(name):
        while (table := draw_table(rng, name)) in tables:
            pass
        tables.append(table)
        return table

    files = {"train": [], "valid": [], "test": []}
    for i in range(1000):
        table = new_table(known[i % len(known)])
        files["train"] += lines_of(rng, table, 2)
    rng.shuffle(files["train"])
    for split, sizes in (("valid", (3, 4)), ("test", (4, 5, 6))):
        for name in rng.sample(rng.sample(known, 30) + new[split], 60):
            table = new_table(name)
            files[split] += lines_of(rng, table, rng.choice(sizes))
    return files


def main():
    for split, lines in make().items():
        path = Path(__file__).parent / f"src1_{split}.txt"
        path.write_bytes("".join(lines).encode())
        print(f"{path.name}: {len(lines):,} lines")


if __name__ == "__main__":
    main()
