"""The Porter2 stemmer for English, as METEOR 1.5 has it: Snowball's "english" of before 2012.

Porter (2001), "Snowball: A language for stemming algorithms". Later releases know more exceptions
and prefixes, and so give other stems for a few words.
"""

import functools
import re

VOWEL = "[aeiouy]"  # a y that is a consonant is written Y while a word is being stemmed
REGION = re.compile(f"{VOWEL}[^aeiouy]")  # what follows the first consonant after a vowel
LONG_START = re.compile("gener|commun|arsen")  # what follows these is a region, too
SHORT_END = re.compile(f"(?:[^aeiouy]{VOWEL}[^aeiouywxY]|^{VOWEL}[^aeiouy])$")  # a short syllable
DOUBLE = re.compile(r"([bdfgmnprt])\1$")

IRREGULAR = dict(pair.split(":") for pair in (
    "skis:ski skies:sky dying:die lying:lie tying:tie idly:idl gently:gentl ugly:ugli early:earli "
    "only:onli singly:singl sky:sky news:news howe:howe atlas:atlas cosmos:cosmos bias:bias "
    "andes:andes"
).split())
DONE_AFTER_PLURAL = set("inning outing canning herring earring proceed exceed succeed".split())


def _table(text):
    """{ending: replacement} from "ending:replacement ..."."""
    return dict(pair.split(":") for pair in text.split())


# In each step only the longest ending counts, and only if it lies in region 1 (R1) or 2 (R2).
PLURAL = _table("sses:ss ied: ies: us:us ss:ss s:")
PAST = _table("eed:ee eedly:ee ed: edly: ing: ingly:")
DERIVED = _table(  # R1
    "tional:tion enci:ence anci:ance abli:able entli:ent izer:ize ization:ize ational:ate "
    "ation:ate ator:ate alism:al aliti:al alli:al fulness:ful ousli:ous ousness:ous iveness:ive "
    "iviti:ive biliti:ble bli:ble ogi:og fulli:ful lessli:less li:"
)
ADJECTIVE = _table(  # R1, but ative R2
    "tional:tion ational:ate alize:al icate:ic iciti:ic ical:ic ful: ness: ative:"
)
LAST = _table(  # R2
    "al: ance: ence: er: ic: able: ible: ant: ement: ment: ent: ism: ate: iti: ous: ive: ize: ion:"
)
AFTER = {"ogi": "l", "li": "cdeghkmnrt", "ion": "st"}  # these only after one of the letters


@functools.cache
def stem(word):
    """The stem of a word in lower case; words with the same stem count as related.

    >>> [stem(word) for word in "restaurants rated rating family-friendliness is".split()]
    ['restaur', 'rate', 'rate', 'family-friendli', 'is']
    """
    if len(word) < 3 or word in IRREGULAR:
        return IRREGULAR.get(word, word)
    word = re.sub("^y", "Y", word.removeprefix("'"))
    word = re.sub(f"({VOWEL})y", r"\1Y", word)
    start = LONG_START.match(word) or REGION.search(word)
    r1 = start.end() if start else len(word)
    start = REGION.search(word, r1)
    r2 = start.end() if start else len(word)

    word = _strip_plural(re.sub("'s'$|'s$|'$", "", word))
    if word in DONE_AFTER_PLURAL:
        return word
    word = _strip_past(word, r1)
    word = re.sub("(?<=.[^aeiouy])[yY]$", "i", word)
    word = _replace(word, DERIVED, r1)
    word = _replace(word, ADJECTIVE, r1, {"ative": r2})
    word = _replace(word, LAST, r2)
    if word.endswith("e"):
        if len(word) > r2 or len(word) > r1 and not SHORT_END.search(word[:-1]):
            word = word[:-1]
    elif word.endswith("ll") and len(word) > r2:
        word = word[:-1]
    return word.replace("Y", "y")


def _longest(word, table):
    """The longest ending of a word that the table has, or "" where it has none."""
    return max((ending for ending in table if word.endswith(ending)), key=len, default="")


def _replace(word, table, region, regions={}):
    ending = _longest(word, table)
    before = word[: len(word) - len(ending)]
    in_region = len(before) >= regions.get(ending, region)
    if ending and in_region and before.endswith(tuple(AFTER.get(ending, ("",)))):
        return before + table[ending]
    return word


def _strip_plural(word):
    ending = _longest(word, PLURAL)
    before = word[: len(word) - len(ending)]
    if ending in ("ied", "ies"):
        return before + ("i" if len(before) > 1 else "ie")
    if ending == "s" and not re.search(VOWEL, before[:-1]):
        return word
    return before + PLURAL.get(ending, "")


def _strip_past(word, r1):
    ending = _longest(word, PAST)
    before = word[: len(word) - len(ending)]
    if ending in ("eed", "eedly"):
        return before + "ee" if len(before) >= r1 else word
    if not ending or not re.search(VOWEL, before):
        return word
    if before.endswith(("at", "bl", "iz")):
        return before + "e"
    if DOUBLE.search(before):
        return before[:-1]
    return before + "e" if len(before) == r1 and SHORT_END.search(before) else before
