"""METEOR 1.5's own data, read from its official files: function words, synonyms, paraphrases.

    meteor-1.5.jar           a zip archive; of it only three lists are read, nothing of it is run
    data/paraphrase-en.gz    5,274,084 pairs of phrases

A folder has both where METEOR_DATA says, in an installed `pycocoevalcap` (whose code is not
imported), or in data/meteor/ of this repository, where `python -m metrics.download` puts them.
"""

import functools
import gzip
import hashlib
import importlib.util
import io
import os
import sys
import zipfile
import zlib
from pathlib import Path

from support.commands import InputError
from support.files import ROOT, sha256, write_aside

JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
KNOWN = {  # size and SHA-256, which are the same in e2e-metrics and in pycocoevalcap 1.2
    JAR: (6_318_693, "1e57b4c72c0830ebe68558f1c799a624e96cbc1b6045c9f6330e26dcff6eafc2"),
    TABLE: (61_813_011, "c147ac7d2c91f2fbb3ad31e4b352235061eb83145e0434daf217ee9ca5975f48"),
}
LISTS = ("function/english.words", "synonym/english.synsets", "synonym/english.exceptions")
OWN_FOLDER = ROOT / "data" / "meteor"  # downloads, and the cached parts of the table
ENTRIES = 5_274_084
LONGEST = 7  # words in the table's longest phrase

# WordNet's endings: what a word that is not in its list may be an inflected form of.
ENDINGS = [pair.split(":") for pair in (
    "s: ses:s xes:x zes:z ches:ch shes:sh men:man ies:y es:e es: ed:e ed: ing:e ing: er: est: er:e "
    "est:e"
).split()]


def find():
    """The folder of METEOR's data: what METEOR_DATA names, else one that is known; or None."""
    named = os.environ.get("METEOR_DATA")
    package = importlib.util.find_spec("pycocoevalcap")
    installed = package.submodule_search_locations if package else []
    known = OWN_FOLDER, *(Path(folder) / "meteor" for folder in installed)
    for place in (Path(named),) if named else known:
        if all((place / name).is_file() for name in KNOWN):
            return place
    if named:
        raise InputError(f"{named} does not hold METEOR's data: {JAR} and {TABLE} belong there")
    return None


def check(path, name):
    """`path`, if it is to the bit the known file; raises InputError otherwise."""
    if sha256(path) != KNOWN[name][1]:
        raise InputError(f"{path} is not the file of METEOR 1.5 (its SHA-256 differs); "
                         "remove it and download it again")
    return path


class Lexicon:
    """What METEOR knows about words: which are function words, which share a synset of WordNet."""

    def __init__(self, folder):
        with zipfile.ZipFile(check(folder / JAR, JAR)) as jar:
            words, synsets, exceptions = [jar.read(name).decode().splitlines() for name in LISTS]
        self.function_words = frozenset(words)
        # A word, and on the next line its synsets; a base, and on the next line its inflections.
        self._synsets = dict(zip(synsets[0::2], synsets[1::2]))
        self._bases = {}
        for base, inflected in zip(exceptions[0::2], exceptions[1::2]):
            for word in inflected.split():
                self._bases.setdefault(word, []).append(base)
        self.synsets = functools.cache(self._find_synsets)

    def _find_synsets(self, word):
        """The synsets of a word and of the words that it may be an inflected form of."""
        bases = self._bases.get(word, ())
        if not bases and len(word) > 2 and not word.endswith("ss"):
            regular = (word.removesuffix(old) + new for old, new in ENDINGS if word.endswith(old))
            bases = [next((base for base in regular if base in self._synsets), word)]
        synsets = set()
        for form in (word, *bases):
            synsets.update(self._synsets.get(form, "").split())
        return frozenset(synsets)


def ngrams(tokens):
    """The n-grams that can be phrases of the table, n = 1 to 7, as (start, n, phrase).

    >>> list(ngrams(("a", "cheap", "pub")))[:3]
    [(0, 1, 'a'), (0, 2, 'a cheap'), (0, 3, 'a cheap pub')]
    """
    for start in range(len(tokens)):
        for n in range(1, min(LONGEST, len(tokens) - start) + 1):
            yield start, n, " ".join(tokens[start : start + n])


def phrases(texts):
    """The set of all n-grams of texts, each a tuple of tokens."""
    return {phrase for tokens in texts for _, _, phrase in ngrams(tokens)}


def paraphrases(folder, phrases):
    """The entries (A, B) of the table that have one of the phrases, in the table's order.

    Reading the whole table takes seconds, so what is kept is cached in data/meteor/. The name of
    the cache says what it was made from, and the checksum inside gzip's format whether it is whole.
    """
    made_from = hashlib.sha256(f"{KNOWN[TABLE]} {sorted(phrases)}".encode()).hexdigest()
    cache = OWN_FOLDER / f"paraphrases-{made_from}.gz"
    try:
        lines = gzip.decompress(cache.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error):  # not there, or not whole
        lines = scan(folder, phrases)
        content = gzip.compress("\n".join(lines).encode("utf-8"), compresslevel=6)
        try:
            with write_aside(cache) as aside:
                aside.write_bytes(content)
        except InputError as error:
            print(f"note: METEOR's paraphrases are looked up anew in each call, which takes some "
                  f"seconds: {error}", file=sys.stderr)
    return list(zip(lines[0::2], lines[1::2]))


def scan(folder, phrases):
    """Read the whole table: two strings, A and B, for each entry with one of `phrases`."""
    from tqdm import tqdm

    wanted = {f"{phrase}\n".encode() for phrase in phrases}
    kept = []
    with gzip.open(check(folder / TABLE, TABLE)) as file:
        lines = io.BufferedReader(file, 1 << 20)  # three lines an entry: a probability, A and B
        entries = zip(lines, lines, lines)
        for _, *sides in tqdm(entries, "METEOR's paraphrases", ENTRIES, leave=False, disable=None):
            if not wanted.isdisjoint(sides):
                kept += [side.decode("utf-8").rstrip("\n") for side in sides]
    return kept
