"""METEOR 1.5 (Banerjee & Lavie 2005; Denkowski & Lavie 2014), equal to its own Java program.

An output is aligned with a reference: words are matched that are equal, have the same stem or are
synonyms, and phrases that are paraphrases. The score is high if many words on both sides are
matched (function words count less) and if they stand in the same order, so that the output need not
be cut into many chunks to arrange it like the reference.

    normalize      a text -> its tokens
    Text, Output   a reference, an output, and what of them could be matched
    align, count   the alignment that METEOR chooses, and the 23 numbers of it
    score          the formula, from the 23 numbers of a pair or from their sums over a corpus
    Meteor         a corpus: for each output the reference with the highest score, and the sums
"""

import functools
import operator
import re
import string
from array import array
from collections import defaultdict

from metrics import meteor_data
from metrics.meteor_data import Lexicon, ngrams

HOW_TO_GET = ("METEOR needs data of its own (68 MB): `pip install pycocoevalcap`, or download them "
              "with `python -m metrics.download`, or let METEOR_DATA name a folder that has them.")

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)  # the modules, each a reason for a match
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # what a match by each of them is worth in the score
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75  # METEOR's parameters for English

# --- Tokens

LETTER = "A-Za-zÀ-ÖØ-öø-ž\u0400-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
RULES = [(re.compile(pattern), replacement) for pattern, replacement in (
    (f"([^{LETTER}0-9 \t\n\v\f\r.'`,\u2018\u2019-])", r" \1 "),  # a symbol stands alone,
    (r"(\.\.+)", r" \1 "),  # and so do several periods,
    ("([^0-9]),([^0-9])", r"\1 , \2"),  # and a comma, unless digits are on both sides
    ("([0-9]),([^0-9])", r"\1 , \2"),
    ("([^0-9]),([0-9])", r"\1 , \2"),
    ("[`\u2018\u2019]", "'"),
    ("[\u201c\u201d]|''", ' " '),
    ("\u2013|--", "-"),
    (f"([{LETTER}0-9.])-([{LETTER}0-9])", r"\1 \2"),  # a hyphen inside a word
    (f"([^{LETTER}])'([^{LETTER}])", r"\1 ' \2"),
    (f"([^{LETTER}0-9])'([{LETTER}])", r"\1 ' \2"),
    (f"([{LETTER}])'([^{LETTER}])", r"\1 ' \2"),
    (f"([{LETTER}])'([{LETTER}])", r"\1 '\2"),
    ("([0-9])'(s)", r"\1 '\2"),
)]
PLAIN = re.compile("[a-z0-9 ]*")  # nothing here is changed by any rule
WORD = re.compile("[^ \t\n\f\r]+")
BLANKS = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
# Abbreviations, whose period does not end a sentence; some of them only if a number follows.
ABBREVIATIONS = {*string.ascii_uppercase, *(
    "Adj Adm Adv Asst Bart Bldg Brig Bros Capt Cmdr Col Comdr Con Corp Cpl DR Dr Drs Ens Gen Gov "
    "Hon Hr Hosp Insp Lt MM MR MRS MS Maj Messrs Mlle Mme Mr Mrs Ms Msgr Op Ord Pfc Ph Prof Pvt "
    "Rep Reps Res Rev Rt Sen Sens Sfc Sgt Sr St Supt Surg Nos Nr v vs rev"
).split()}
NUMBER_ABBREVIATIONS = {"No", "Art", "pp"}


def normalize(text):
    """Cut a text into the tokens that METEOR compares: a tuple of str, in lower case.

    >>> " ".join(normalize("it 's family-friendly , costs # 3,000 and is n't in the u.s."))
    "it ' s family friendly , costs # 3,000 and is n 't in the us"
    """
    if PLAIN.fullmatch(text):
        return tuple(text.split())
    text = f" {text} "  # the blanks are neighbours for the rules
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    words = WORD.findall(text)
    for position, (word, following) in enumerate(zip(words, words[1:] + [""])):
        before = word[:-1]
        if not word.endswith(".") or not before.strip("."):
            continue
        if "." in before and re.search(f"[{LETTER}]", before):
            words[position] = word.replace(".", "")
        elif not (before in ABBREVIATIONS or re.match("[a-z]", following)
                  or before in NUMBER_ABBREVIATIONS and re.match("[0-9]", following)):
            words[position] = f"{before} ."
    return tuple(WORD.findall(BLANKS.sub(" ", " ".join(words)).lower()))


@functools.cache
def key(word):
    """What METEOR compares instead of words and of stems: Java's hash of a string, 32 bits.

    h = 31 h + code, over the characters. So a few pairs of different words are equal to METEOR:

    >>> key("v8") == key("tv"), key("q4") == key("or"), key("pub") == key("bar")
    (True, True, False)
    """
    total = 0
    for code in array("H", word.encode("utf-16"))[1:]:  # without the byte order mark
        total = (31 * total + code) & 0xFFFFFFFF
    return total


@functools.cache
def stem(word):
    """The stem of a word in lower case; words with the same stem count as related.

    It is Snowball's for English (Porter 2001) of before 2012, as in METEOR 1.5. Later releases know
    more exceptions and prefixes, and so give other stems for a few words.

    >>> [stem(word) for word in "restaurants rated rating family-friendliness is".split()]
    ['restaur', 'rate', 'rate', 'family-friendli', 'is']
    """
    from snowballstemmer.english_stemmer import EnglishStemmer  # the other scores need no package

    return EnglishStemmer().stemWord(word)


# --- What could be matched


class Text:
    """A reference, and what in it could be matched with a paraphrase."""

    def __init__(self, tokens, lexicon, paraphrases):
        self.tokens, self.keys, self.lexicon = tokens, list(map(key, tokens)), lexicon
        self.functions = [word in lexicon.function_words for word in tokens]
        self.sources = []  # (start, length, paraphrase): at start is a phrase that has this one
        self.targets = defaultdict(list)  # a phrase that is a paraphrase -> where it starts
        for start, length, phrase in ngrams(tokens):
            if phrase in paraphrases:
                self.targets[phrase].append(start)
                self.sources += [(start, length, other) for other in paraphrases[phrase]]

    def known_by(self, word):
        """(module, what it knows the word by): words that have one in common can be matched."""
        synsets = ((SYNONYM, synset) for synset in self.lexicon.synsets(word))
        return (EXACT, key(word)), (STEM, key(stem(word))), *synsets


class Output(Text):
    """An output, and what a reference's words and phrases could be matched with in it."""

    def __init__(self, tokens, lexicon, paraphrases):
        super().__init__(tokens, lexicon, paraphrases)
        self.places = defaultdict(set)  # what a module knows words by -> their positions
        for i, word in enumerate(tokens):
            for known in self.known_by(word):
                self.places[known].add(i)
        self.word_matches = functools.cache(self.find_word_matches)  # many references repeat words

    def candidates(self, reference):
        """For each position j in a reference the list of the matches that could start there.

        A match is (i, words in the output, words in the reference, module); it starts at i in the
        output. A list has its matches by module, and has those twice whose paraphrase is in the
        table in both directions. Order and repetition have an effect on the alignment.
        """
        if reference.keys == self.keys:
            # The search would find this, too: at no word is another path ahead of it.
            return [[(j, 1, 1, EXACT)] for j in range(len(self.tokens))]
        lists = [list(self.word_matches(word)) for word in reference.tokens]
        for j, length, phrase in reference.sources:
            for i in self.targets.get(phrase, ()):
                lists[j].append((i, phrase.count(" ") + 1, length, PARAPHRASE))
        for i, length, phrase in self.sources:
            for j in reference.targets.get(phrase, ()):
                lists[j].append((i, length, phrase.count(" ") + 1, PARAPHRASE))
        return lists

    def find_word_matches(self, word):
        """The matches for a word of a reference: equal words, those of its stem, its synonyms."""
        found = {(known[0], i) for known in self.known_by(word) if known in self.places
                 for i in self.places[known]}
        return [(i, 1, 1, module) for module, i in sorted(found)
                if module == EXACT or self.keys[i] != key(word)]


# --- The alignment

BEAM = 40  # paths that the search keeps
COST = operator.itemgetter(0)
NOWHERE = -1  # the end of the last match, if the word before has none


def align(candidates, n_words):
    """Choose among the candidates as METEOR does: a list of (j, match), by position.

    candidates: as from Output.candidates; n_words: of the output.

    The search goes through the reference word by word. A path takes one of the matches that start
    at the word, or none of them; the BEAM best paths go on. Best is what has matched most words on
    both sides; of equals, what has fewer chunks; then the smaller distance, the sum of abs(j - i);
    then what was there first.

    Three peculiarities of METEOR's program decide what is found. Matches other than exact ones
    count half, rounded down, so that two single words which are synonyms count 0. The distance of a
    match is added not to the path that takes it, but to the one that it branches off from. And a
    match without an alternative is taken by all paths.
    """
    of_output, of_reference = [0] * n_words, [0] * len(candidates)  # how many cover each word
    for j, matches in enumerate(candidates):
        for i, n_output, n_reference, _ in matches:
            for word in range(i, i + n_output):
                of_output[word] += 1
            for word in range(j, j + n_reference):
                of_reference[word] += 1
    # The cost is one number: a chunk costs more than all distances, a matched word gains more than
    # all chunks.
    chunk = 1 + max(n_words, len(candidates)) * sum(map(len, candidates))
    gain = chunk * (2 + len(candidates))
    # A path: its cost; where its last match ends in the output and in the reference; the words of
    # the output that it uses, as bits; its matches, as (last match, those before it).
    paths = [(0, NOWHERE, 0, 0, None)]
    for j, matches in enumerate([*candidates, []]):  # at the end the last chunk is closed
        options, is_fixed = [], False
        for match in matches:
            i, n_output, n_reference, module = match
            words = 2 if module == EXACT else n_output // 2 + n_reference // 2
            ends, mask = (i + n_output, j + n_reference), (1 << n_output) - 1 << i
            options.append((i, *ends, mask, gain * words, abs(j - i), (j, match)))
            covered = of_output[i : i + n_output] + of_reference[j : j + n_reference]
            is_fixed = set(covered) == {1}
        branched = []
        for path in sorted(paths, key=COST)[:BEAM]:  # of equals, the first stays first
            cost, end, reach, used, chosen = path
            if reach > j:  # inside a match that it has taken
                branched.append(path)
                continue
            for i, new_end, new_reach, mask, gained, distance, match in options:
                if not used & mask:
                    new_cost = cost - gained
                    if end != i and end != NOWHERE:
                        new_cost += chunk
                    branched.append((new_cost, new_end, new_reach, used | mask, (match, chosen)))
                    cost += distance
            if not is_fixed:
                if end != NOWHERE:
                    cost += chunk
                branched.append((cost, NOWHERE, reach, used, chosen))
        paths = branched
    matches, alignment = min(paths, key=COST)[-1], []
    while matches:
        match, matches = matches
        alignment.append(match)
    return alignment[::-1]


def count(output, reference):
    """Align an output with a reference and count: the 23 numbers that `score` needs.

    They are the number of words in the output and in the reference; how many of these are function
    words; then for each module the matched content words of the output and of the reference, and
    the matched function words of both; then the chunks, the matched words of the output, and the
    matched words of the reference.
    """
    matched, chunks, ends = [0] * 16, 0, None
    for j, match in align(output.candidates(reference), len(output.tokens)):
        i, n_output, n_reference, module = match
        for function in output.functions[i : i + n_output]:
            matched[4 * module + 2 * function] += 1
        for function in reference.functions[j : j + n_reference]:
            matched[4 * module + 2 * function + 1] += 1
        chunks += (i, j) != ends
        ends = i + n_output, j + n_reference
    return (len(output.tokens), len(reference.tokens), sum(output.functions),
            sum(reference.functions), *matched, chunks, sum(matched[0::2]), sum(matched[1::2]))


# --- The score


def score(statistics):
    """METEOR from the 23 numbers that `count` describes:

        P      = weight of the matched words of the output / weight of all its words
        R      = weight of the matched words of the reference / weight of all its words
        F      = 1 / ((1 - ALPHA) / P + ALPHA / R)
        METEOR = F * (1 - GAMMA * (chunks / matched words) ** BETA)

    A content word weighs DELTA, a function word 1 - DELTA; a matched one, that times the weight of
    its module. "Matched words" is the mean of both sides. Where all words of both are matched in
    one chunk, METEOR is 1.

    "the cat sat on the mat" and "on the mat sat the cat" have all words in common, three of them
    function words, but the one has to be cut into three chunks to become the other: P = R = 1, and
    METEOR is 1 - 0.6 * (3 / 6) ** 0.2.

    >>> round(score((6, 6, 3, 3, 3, 3, 3, 3, *[0] * 12, 3, 6, 6)), 4)
    0.4777
    >>> round(1 - 0.6 * (3 / 6) ** 0.2, 4)
    0.4777
    """
    n_output, n_reference, functions_output, functions_reference, *matched = statistics[:20]
    chunks, m_output, m_reference = statistics[20:]
    if m_output == 0:
        return 0.0
    p = _weigh(matched[0::4], matched[2::4])
    p /= DELTA * (n_output - functions_output) + (1 - DELTA) * functions_output
    r = _weigh(matched[1::4], matched[3::4])
    r /= DELTA * (n_reference - functions_reference) + (1 - DELTA) * functions_reference
    f = 1 / ((1 - ALPHA) / p + ALPHA / r)
    perfect = (m_output, m_reference, chunks) == (n_output, n_reference, 1)
    fragmentation = 0.0 if perfect else chunks / ((m_output + m_reference) / 2)
    return f * (1 - GAMMA * fragmentation ** BETA)


def _weigh(content, functions):
    """The weight of matched words, from their numbers for each module, added in METEOR's order."""
    weight = 0.0
    for words, share in ((content, DELTA), (functions, 1 - DELTA)):
        for module, number in enumerate(words):
            weight += WEIGHTS[module] * number * share
    return weight


class Meteor:
    """METEOR against one set of references, made ready once for any number of files of outputs.

    references: a list of lists of str, tokenised as by ptb.tokenize; folder: what
    meteor_data.find() gives.
    """

    def __init__(self, references, folder):
        self.lexicon = Lexicon(folder)
        self.references = [[normalize(text) for text in group] for group in references]
        self.phrases = meteor_data.phrases(set().union(*self.references))
        self.table = meteor_data.paraphrases(folder, self.phrases)

    def score(self, outputs):
        """The score of the corpus, and a list of the score of each output.

        The former is not the mean of the latter, but the formula applied to the sums of the 23
        numbers. In these sums a chunk does not count if it is the only one and leaves no word
        unmatched.
        """
        rows = self.statistics(outputs)
        sums = [sum(column) for column in zip(*rows)]
        sums[-3] -= sum(row[-3] == 1 and row[-2:] == row[:2] for row in rows)
        return score(sums), [score(row) for row in rows]

    def statistics(self, outputs):
        """For each output the 23 numbers of its best reference; of equally good ones, the first."""
        outputs = [normalize(text) for text in outputs]
        known, paraphrases = self.phrases | meteor_data.phrases(outputs), defaultdict(list)
        for a, b in self.table:  # most have a side that stands nowhere
            if a in known and b in known:
                paraphrases[a].append(b)
                paraphrases[b] += []
        prepare = functools.cache(lambda tokens: Text(tokens, self.lexicon, paraphrases))
        rows = []
        for tokens, group in zip(outputs, self.references, strict=True):
            output = Output(tokens, self.lexicon, paraphrases)
            rows.append(max((count(output, prepare(text)) for text in group), key=score))
        return rows


def prepare(references):
    """A Meteor for these references, or None where METEOR's data are not found."""
    folder = meteor_data.find()
    return None if folder is None else Meteor(references, folder)
