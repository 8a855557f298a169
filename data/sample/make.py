"""A small data set in E2E's form: tables of invented places to eat, each with sentences that say what it holds.

A grammar in three steps: draw a table; let a *plan* arrange it; let each slot pick one of its phrases. A plan works on
the slots that are left (`left`, a dict) and takes out each one it puts into words; `rest` says all that remain. So no
slot is lost and none is said twice.

    python data/sample/make.py        writes src1_train.txt, src1_valid.txt and src1_test.txt beside itself
"""

import argparse
import os
import random
from pathlib import Path

KEYS = ("name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")  # E2E's keys, its order

# ---- the words -------------------------------------------------------------------------------------------------------

FIRST = ("Amber", "Bramble", "Copper", "Crimson", "Hazel", "Ivory", "Juniper", "Maple", "Marble", "Saffron", "Silver",
         "Tin", "Velvet", "Walnut", "Wicker", "Yellow")
NAMES = [f"The {first} {thing}" for first in FIRST
         for thing in ("Badger", "Fiddle", "Hare", "Heron", "Kettle", "Lantern", "Spoon", "Thistle")]
NAMES += [f"{first} {room}" for first in FIRST for room in ("Corner", "Garden", "Kitchen", "Larder")]
TYPES = ("bistro", "brasserie", "canteen", "diner", "food truck", "inn", "tavern", "tea room", "wine bar")
FOODS = ("Ethiopian", "Georgian", "Greek", "Korean", "Lebanese", "Mexican", "Moroccan", "Peruvian", "Polish",
         "Portuguese", "Thai", "Turkish", "Vietnamese", "vegan", "vegetarian")
AMOUNTS = ("under £ 10", "£ 10 - 15", "£ 15 - 25", "£ 25 - 40", "over £ 40")
PRICE_WORDS = ("affordable", "cheap", "expensive")
SCORES = ("2 out of 5", "3 out of 5", "4 out of 5")
RATING_WORDS = ("decent", "excellent", "good", "poor")
AREAS = {"canal": "by the canal", "harbour": "at the harbour", "hillside": "on the hillside",
         "market square": "on the market square", "north end": "in the north end", "old town": "in the old town",
         "seafront": "on the seafront", "university quarter": "in the university quarter"}
FAMILY = {"yes": ("is family - friendly", "welcomes families", "is suitable for children"),
          "no": ("is not family - friendly", "does not cater for families", "is not suitable for children")}
NEARS = ("Alder Bridge", "Ashdown Theatre", "Corbin Station", "Fenwick Library", "Garrick Hall", "Hollis Park",
         "Linden Gardens", "Mercer Lock", "Orrin Cathedral", "Pell Street", "Quarry Hill", "Rosewell Market",
         "Tanner Wharf", "Tolland Pier", "the Corn Exchange", "the Glass Tower", "the Old Lighthouse",
         "the Town Baths")
VALUES = {"Type": TYPES, "food": FOODS, "price": AMOUNTS + PRICE_WORDS, "customer rating": SCORES + RATING_WORDS,
          "area": tuple(AREAS), "family friendly": tuple(FAMILY), "near": NEARS}

# ---- from slots to phrases -------------------------------------------------------------------------------------------


def an(phrase):
    return ("an " if phrase[0] in "aeiouAEIOU" else "a ") + phrase


def series(parts):
    return " and ".join(filter(None, (" , ".join(parts[:-1]), parts[-1])))


def sentence(*parts):
    text = " ".join(filter(None, parts))
    return text[0].upper() + text[1:] + " ."


def place(rng, left):
    """Takes area and near: "on the seafront close to Pell Street"; "" where the table has neither."""
    parts = []
    if "area" in left:
        parts.append(AREAS[left.pop("area")])
    if "near" in left:
        parts.append(rng.choice(("near", "close to", "not far from")) + " " + left.pop("near"))
    return " ".join(parts)


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
    return an(" ".join(adjectives + [left.pop("Type", "place" if adjectives else "place to eat")]))


def meals(left):
    """Takes price: "meals for under £ 10", "cheap meals"."""
    price = left.pop("price")
    return f"{price} meals" if price in PRICE_WORDS else f"meals for {price}"


def rating(left):
    """Takes the rating: "a customer rating of 4 out of 5", "an excellent customer rating"."""
    value = left.pop("customer rating")
    return an(f"{value} customer rating") if value in RATING_WORDS else f"a customer rating of {value}"


def food(rng, left):
    """Takes food, and price with it where there is one: "serves cheap Thai food", "serves Thai food for £ 10 - 15"."""
    dishes, price = f"{left.pop('food')} {rng.choice(('food', 'dishes'))}", left.pop("price", "")
    if price in AMOUNTS:
        dishes = f"{dishes} for {price}"
    elif price:
        dishes = f"{price} {dishes}"
    return rng.choice(("serves ", "offers ")) + dishes


def verbs(rng, left):
    """Takes all that is left: a list of verb phrases, "serves Thai food", "welcomes families"."""
    first, said = [], []
    if "Type" in left:
        first.append(" ".join(filter(None, ("is", an(left.pop("Type")), place(rng, left)))))
    if "food" in left:
        said.append(food(rng, left))
    if "price" in left:
        said.append(rng.choice(("serves ", "offers ")) + meals(left))
    if "customer rating" in left:
        said.append(f"is rated {left.pop('customer rating')} by its customers" if rng.random() < 0.4 else
                    "has " + rating(left))
    if "family friendly" in left:
        said.append(rng.choice(FAMILY[left.pop("family friendly")]))
    if where := place(rng, left):
        said.append("is " + where)
    if rng.random() < 0.3:
        rng.shuffle(said)
    return first + said


def rest(rng, left, subject="it"):
    """All that is left, in a sentence about `subject`, or in two; none where nothing is left."""
    said = verbs(rng, left)
    cut = len(said) if len(said) <= 3 else 2
    return " ".join(sentence(who, series(part)) for who, part in ((subject, said[:cut]), ("it", said[cut:])) if part)


# ---- the plans: each arranges a table in its own way -----------------------------------------------------------------


def plain(rng, name, left):
    who = rng.choice(("it", "the " + left.get("Type", "place")))
    return sentence(name, "is", noun(rng, left), place(rng, left)), rest(rng, left, who)


def called(rng, name, left):
    return sentence("there is", noun(rng, left), "called", name, place(rng, left)), rest(rng, left)


def place_first(rng, name, left):
    where, what = place(rng, left), noun(rng, left)
    tail = ("there is", what, "called", name) if rng.random() < 0.5 else ("you will find", name, ",", what)
    return sentence(where, *tail), rest(rng, left)


def food_first(rng, name, left):
    kind = left.pop("food")
    return sentence("for", kind, "food , try", name, ",", noun(rng, left), place(rng, left)), rest(rng, left)


def in_commas(rng, name, left):
    start = noun(rng, left), (place(rng, left) if rng.random() < 0.7 else "")
    said = verbs(rng, left)
    if not said:
        return sentence(name, "is", *start),
    more = [sentence("it", series(said[3:]))] if len(said) > 3 else []
    return sentence(name, ",", *start, ",", series(said[:3])), *more


def with_what(rng, name, left):
    has = [take(left) for slot, take in (("price", meals), ("customer rating", rating)) if slot in left]
    return sentence(name, "is", noun(rng, left), place(rng, left), "with", series(has)), rest(rng, left)


def serving(rng, name, left):
    where = place(rng, left) if rng.random() < 0.6 else ""
    return sentence(name, food(rng, left), where), rest(rng, left)


def standing(rng, name, left):
    return sentence(name, "is", place(rng, left)), rest(rng, left)


PLANS = {  # each plan, and the slots of which it needs one
    plain: ("name",), called: ("name",), in_commas: ("name",), place_first: ("area", "near"),
    standing: ("area", "near"), food_first: ("food",), serving: ("food",), with_what: ("price", "customer rating")}

# ---- tables, and the three files -------------------------------------------------------------------------------------


def draw_table(rng, name):
    """A table of 3 to 8 slots, the name among them."""
    chosen = rng.sample(KEYS[1:], rng.choice((2, 3, 4, 4, 5, 5, 6, 6, 7)))
    return {"name": name} | {key: rng.choice(VALUES[key]) for key in KEYS if key in chosen}


def describe(rng, table):
    left = dict(table)
    plan = rng.choice([plan for plan, needs in PLANS.items() if any(slot in table for slot in needs)])
    text = " ".join(filter(None, plan(rng, left.pop("name"), left)))
    assert not left, f"{plan.__name__} does not say {left}"
    return text


def lines_of(rng, table, n):
    """The lines of one table: n different sentences (n up to 6: the tables of fewest words have no more)."""
    texts = {}  # a dict keeps the order of writing
    while len(texts) < n:
        texts[describe(rng, table)] = None
    return [" | ".join(f"{key} : {value}" for key, value in table.items()) + f"||{text} \n" for text in texts]


def make(seed=2021):
    """The three files' lines: 1,000 tables of 2 sentences, 60 of 3 or 4, 60 of 4 to 6; no table occurs twice."""
    rng, tables = random.Random(seed), []
    names = rng.sample(NAMES, len(NAMES))
    known, new_valid, new_test = names[:132], names[132:162], names[162:]  # 132, and 30 new ones for each of the others

    def new_table(name):
        while (table := draw_table(rng, name)) in tables:
            pass
        tables.append(table)
        return table

    train = [line for i in range(1000) for line in lines_of(rng, new_table(known[i % len(known)]), 2)]
    rng.shuffle(train)
    files = {"train": train}
    for split, new, sizes in (("valid", new_valid, (3, 4)), ("test", new_test, (4, 5, 6))):
        chosen = rng.sample(rng.sample(known, 30) + new, 60)
        files[split] = [line for name in chosen for line in lines_of(rng, new_table(name), rng.choice(sizes))]
    return files


def main():
    parser = argparse.ArgumentParser(description="Write src1_train.txt, src1_valid.txt and src1_test.txt: a small data "
                                                 "set in E2E's form, made by a grammar, the same on every run.")
    parser.add_argument("--out", type=Path, metavar="DIR", default=Path(__file__).parent,
                        help="folder to write to (default: this script's own)")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for split, lines in make().items():
        path = out / f"src1_{split}.txt"
        aside = path.with_name(path.name + ".part")
        aside.write_bytes("".join(lines).encode())
        os.replace(aside, path)
        print(f"{path.name}: {len(lines)} lines, {len({line.split('||')[0] for line in lines})} tables")
        print("".join(f"    {line}" for line in lines[:2]), end="")


if __name__ == "__main__":
    main()
