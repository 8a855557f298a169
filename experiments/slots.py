"""How often E2E sentences leave out a value of their table, or say another one.

    python -m experiments.slots runs/prefix-tiny-e2e runs/finetune-tiny-e2e

counts for each run's outputs, and for the references themselves, the slots that a sentence does not
mention, those that it contradicts, and the sentences that name the place nearby more than once. A
value counts as said where one of its phrasings stands in the sentence: rules, not understanding. So
the references' own figures show what the rules miss, and only differences between rows mean
something. A run says each table once; the references say some tables more often than others.
"""

import argparse
import re

from compare import read_sentences, runs_in
from e2e_data import read_split
from support.commands import InputError, format_rows, run_command
from support.reading import find_data


def near(topic, value):
    """A value within a few words of its topic: "a high rating", "rated 5 out of 5"."""
    after = rf"\b({topic})\w*( [^ .]+){{0,5}} ({value})\b"
    before = rf"\b({value})( [^ .]+){{0,4}} ({topic})"
    return f"{after}|{before}"


RATING, PRICE = "rat|star|review|customer|scor", "pric|cost|£|range"
NOT = r"\b(not|n't|no|non|never|isn't|without|unsuitable|adults?[ -]+only)\b"
CHILDREN = r"(famil|child|kid)"
NOT_CHILDREN = rf"{NOT}[^.]*{CHILDREN}|{CHILDREN}[^.]*{NOT}"  # in one sentence
FIVE = "(?<!out of )5|five"  # "1 out of 5" is not five
THAN = r"( than)?( of)?( £)?"
CHEAP = r"\bcheap|inexpensive"
EXPENSIVE = r"\bexpensive|\bpricey"

NAMES = ("name", "near")  # of places; "Raja Indian Cuisine" says nothing about the food
PHRASINGS = {  # slot -> value -> pattern, for the slots that have few values, in lower case
    "Type": {
        "pub": r"\bpub",
        "restaurant": r"\brestaurant",
        "coffee shop": r"\b(coffee|caf[eé]\b)",
    },
    "food": {
        "chinese": r"\bchinese\b",
        "english": r"\benglish|\bbritish",
        "fast food": r"\bfast food\b",
        "french": r"\bfrench\b",
        "indian": r"\bindian\b",
        "italian": r"\bitalian\b",
        "japanese": r"\bjapanese|\bsushi",
    },
    "area": {
        "riverside": r"\briver",
        "city centre": r"\b(city|cent(re|er)|town|downtown)\b",
    },
    "family friendly": {
        "yes": rf"^(?!.*({NOT_CHILDREN})).*{CHILDREN}",
        "no": rf"{NOT_CHILDREN}|\badults?\b",
    },
    "customer rating": {
        "low": near(RATING, "low|poor|bad|1|one"),
        "average": near(RATING, "average|moderate|decent|ok|3|three"),
        "high": near(RATING, "high|highly|excellent|great|good|well|" + FIVE),
        "1 out of 5": near(RATING, "1|one|low|poor"),
        "3 out of 5": near(RATING, "3|three|average|moderate"),
        "5 out of 5": near(RATING, FIVE + "|high|excellent|top"),
    },
    "price": {
        "cheap": rf"{CHEAP}|affordable|" + near(PRICE, "low|less"),
        "less than £ 20": rf"(less|lower|under|below|no more|not more){THAN} 20|{CHEAP}|"
                          + near(PRICE, "low"),
        "moderate": r"\bmoderate|mid(dle)?[ -]|reasonabl|" + near(PRICE, "average|fair"),
        "£ 20 - 25": r"20( £)?( -| to| and)( £)? 25|\bmoderate",
        "high": rf"{EXPENSIVE}|" + near(PRICE, "high|higher|30"),
        "more than £ 30": rf"(more|over|above|greater|upwards){THAN} 30|{EXPENSIVE}|"
                          + near(PRICE, "high|30"),
    },
}


def judge(slot, value, sentence):
    """"said", "missing" or "contradicted": what a sentence does with a value of its table.

    Raises InputError where the value is not one of E2E's.

    >>> judge("area", "riverside", "A pub by the river .")
    'said'
    >>> judge("area", "riverside", "A pub .")
    'missing'
    >>> judge("area", "riverside", "A pub in the city centre .")
    'contradicted'
    """
    sentence, value = " ".join(sentence.lower().split()), value.lower()
    if slot in NAMES:
        return "said" if value in sentence else "missing"
    patterns = {known.lower(): pattern for known, pattern in PHRASINGS.get(slot, {}).items()}
    if value not in patterns:
        raise InputError(f"the rules know E2E's values alone, and not {slot} : {value}")
    said = [known for known, pattern in patterns.items() if re.search(pattern, sentence)]
    if value in said:
        return "said"
    return "contradicted" if said else "missing"


def values_of(table):
    """{slot: value} of a table as the model reads it; a value may be empty."""
    pairs = [f"{pair} ".partition(" : ") for pair in table.split(" | ")]  # an empty one: "near :"
    return {slot.strip(): value.strip() for slot, _, value in pairs}


def judgements(pairs):
    """[(slot, judgement)] of all values over pairs of a table and a sentence; names of places say
    nothing of other slots."""
    found = []
    for table, sentence in pairs:
        values = values_of(table)
        without_names = sentence.lower()
        for slot in NAMES:
            if values.get(slot):
                without_names = without_names.replace(values[slot].lower(), " ")
        found += [(slot, judge(slot, value, sentence if slot in NAMES else without_names))
                  for slot, value in values.items()]
    return found


def share(told, judgement, slot=None):
    """How many of the values, or of a slot's, are judged so, in per cent."""
    of_slot = [own for name, own in told if slot in (None, name)]
    return 100 * of_slot.count(judgement) / len(of_slot)


def near_twice(pairs):
    """How many sentences name the place nearby more than once, of tables that have one, in %."""
    times = []
    for table, sentence in pairs:
        if place := re.search(r"\bnear : ([^|]*[^| ])", table):
            times.append(sentence.lower().count(place[1].lower()))
    return 100 * sum(n > 1 for n in times) / len(times) if times else 0.0


def faults(pairs):
    """How many values pairs of a table and a sentence leave out, contradict, say twice, in %."""
    told = judgements(pairs)
    return {"left out": round(share(told, "missing"), 1),
            "contradicted": round(share(told, "contradicted"), 1),
            "near twice": round(near_twice(pairs), 1)}


def main():
    parser = argparse.ArgumentParser(
        description="Values of the tables that sentences leave out, contradict, repeat.")
    parser.add_argument("runs", nargs="*", metavar="RUN",
                        help="folders that train.py or describe.py --out wrote")
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR",
                        help="the data set (default: e2e)")
    args = parser.parse_args()
    examples = read_split(find_data(args.data), "test")
    tables = {table for table, _ in examples}
    slots = sorted({slot for table in tables for slot in values_of(table)})
    said = {str(run): list(read_sentences(run).items()) for run in runs_in(args.runs)}
    rows = [("%", ["contradicted", "near twice", "missing: all", *slots])]
    for name, pairs in (said | {"the references": examples}).items():
        if {table for table, _ in pairs} != tables:
            raise InputError(f"{name} describes other tables than {args.data}'s test set has")
        left_out, *others = faults(pairs).values()
        told = judgements(pairs)
        by_slot = [share(told, "missing", slot) for slot in slots]
        rows.append((name, [f"{value:.1f}" for value in (*others, left_out, *by_slot)]))
    print("\n".join(format_rows(rows)))


if __name__ == "__main__":
    run_command(main)
