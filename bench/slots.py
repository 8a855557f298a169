"""How often E2E sentences leave out a value of their table, or say another one.

    python bench/slots.py runs/prefix-tiny-e2e runs/finetune-tiny-e2e

counts for each run's outputs, and for the references themselves, the slots that a sentence does not mention, those
that it contradicts, and the sentences that name the place nearby more than once. A value counts as said where one of its phrasings stands in the sentence: rules, not understanding,
so the references' own numbers show what the rules miss, and only differences between rows mean something.
"""

import argparse
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from common import InputError, run_command  # noqa: E402
from e2e_data import find_data, group_by_table, read_split  # noqa: E402


def near(topic, value):
    """A pattern for a value within a few words of its topic: "a high customer rating", "rated 5 out of 5"."""
    return rf"\b({topic})\w*( [^ .]+){{0,5}} ({value})\b|\b({value})( [^ .]+){{0,4}} ({topic})"


RATING, PRICE = "rat|star|review|customer|scor", "pric|cost|£|range"
NOT = r"(not|n't|no|non|never|isn't|without|unsuitable|adults?[ -]+only)"
CHILDREN = r"(famil|child|kid)"

NAMES = ("name", "near")  # of places; "Raja Indian Cuisine" says nothing about the food
PHRASINGS = {  # slot -> value -> pattern, for the slots that have few values; texts are in lower case
    "Type": {"pub": r"\bpub", "restaurant": r"\brestaurant", "coffee shop": r"\b(coffee|caf[eé]\b)"},
    "food": {food: rf"\b{food}\b" for food in ("chinese", "english|british", "fast food", "french", "italian",
                                                "japanese|sushi", "indian")},
    "area": {"riverside": r"\briver", "city centre": r"\b(city|cent(re|er)|town|downtown)\b"},
    "family friendly": {"yes": rf"^(?!.*\b{NOT}\b.*{CHILDREN})(?!.*{CHILDREN}.*\b{NOT}\b).*{CHILDREN}",
                        "no": rf"\b{NOT}\b.*{CHILDREN}|{CHILDREN}.*\b{NOT}\b|\badults?\b"},
    "customer rating": {
        "low": near(RATING, "low|poor|bad|1|one"), "average": near(RATING, "average|moderate|decent|ok|3|three"),
        "high": near(RATING, "high|highly|excellent|great|good|well|5|five"),
        "1 out of 5": near(RATING, "1|one|low|poor"),
        "3 out of 5": near(RATING, "3|three|average|moderate"), "5 out of 5": near(RATING, "5|five|high|excellent|top"),
    },
    "price": {
        "cheap": r"\bcheap|inexpensive|affordable|" + near(PRICE, "low|less"),
        "less than £ 20": r"(less|lower|under|below|no more|not more)( than)?( £)? 20|\bcheap|inexpensive|"
                          + near(PRICE, "low"),
        "moderate": r"\bmoderate|mid(dle)?[ -]|reasonabl|" + near(PRICE, "average|fair"),
        "£ 20 - 25": r"20( £)?( -| to| and)( £)? 25|\bmoderate",
        "high": r"\bexpensive|\bpricey|" + near(PRICE, "high|higher|30"),
        "more than £ 30": r"(more|over|above|greater|upwards)( than)?( of)?( £)? 30|\bexpensive|\bpricey|"
                          + near(PRICE, "high|30"),
    },
}
PHRASINGS = {slot: {value: re.compile(pattern) for value, pattern in values.items()}
             for slot, values in PHRASINGS.items()}


def judge(slot, value, sentence):
    """"said", "missing" or "contradicted": what a sentence does with a value of its table.

    Raises InputError where the value is not one of E2E's.

    >>> [judge("area", "riverside", text) for text in ("A pub by the river .", "A pub .", "A pub in the city centre .")]
    ['said', 'missing', 'contradicted']
    """
    sentence, value = " ".join(sentence.lower().split()), value.lower()
    if slot in NAMES:
        return "said" if value in sentence else "missing"
    if not any(value in known.lower().split("|") for known in PHRASINGS.get(slot, ())):
        raise InputError(f"the rules know E2E's values alone, and not {slot} : {value}")
    said = {other for other, pattern in PHRASINGS[slot].items() if pattern.search(sentence)}
    if any(value in other.split("|") for other in said):
        return "said"
    return "contradicted" if said else "missing"


def count(pairs):
    """Counter of (slot, judgement) over pairs of a table and a sentence."""
    counts = Counter()
    for table, sentence in pairs:
        values = dict(pair.strip().split(" : ", 1) for pair in table.split(" | "))
        names = [values[slot].lower() for slot in NAMES if slot in values]
        without_names = re.sub("|".join(map(re.escape, names)) or "(?!)", " ", sentence.lower())
        for slot, value in values.items():
            counts[slot, judge(slot, value, sentence if slot in NAMES else without_names)] += 1
    return counts


def near_twice(pairs):
    """Of the pairs whose table has a place nearby, the share whose sentence names it more than once."""
    times = [sentence.lower().count(near[1].lower()) for table, sentence in pairs
             if (near := re.search(r"\bnear : ([^|]*[^| ])", table))]
    return sum(n > 1 for n in times) / len(times)


def main():
    parser = argparse.ArgumentParser(description="Values of the tables that sentences leave out, contradict, repeat.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders that train.py or beam.py --out wrote")
    parser.add_argument("--data", default="e2e", metavar="e2e|DIR", help="the data set (default: e2e)")
    args = parser.parse_args()
    examples = read_split(find_data(args.data), "test")
    tables = list(group_by_table(examples))
    said = {}
    for run in args.runs:
        path = Path(run) / "outputs.txt"
        if not path.exists():
            raise InputError(f"{path} is missing: {run} holds no finished run")
        outputs = path.read_text(encoding="utf-8").split("\n")[:-1]
        if len(outputs) != len(tables):
            raise InputError(f"{path} has {len(outputs)} lines for the {len(tables)} tables of {args.data}")
        said[run] = list(zip(tables, outputs))
    said["the references"] = examples
    rows = {name: count(pairs) for name, pairs in said.items()}

    width = max(map(len, [*rows, "contradicted, %"]))
    slots = sorted({slot for counts in rows.values() for slot, _ in counts})
    for judgement in ("missing", "contradicted"):
        heads = "".join(f"{slot:>{max(8, len(slot) + 2)}}" for slot in ["all", *slots])
        print(f"\n{judgement + ', %':<{width}}{heads}")
        for name, counts in rows.items():
            cells = []
            for slot in [None, *slots]:
                of_slot = {key: n for key, n in counts.items() if slot in (None, key[0])}
                hits = sum(n for (_, what), n in of_slot.items() if what == judgement)
                cells.append(f"{100 * hits / sum(of_slot.values()):>{max(8, len(slot or '') + 2)}.1f}")
            print(f"{name:<{width}}" + "".join(cells))
    print(f"\n{'near twice, %':<{width}}")
    for name, pairs in said.items():
        print(f"{name:<{width}}{100 * near_twice(pairs):>8.1f}")


if __name__ == "__main__":
    run_command(main)
