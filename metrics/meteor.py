"""METEOR 1.5 (Banerjee & Lavie 2005; Denkowski & Lavie 2014), equal to its own Java program.

An output is aligned with a reference: words are matched that are equal, have the same stem or are
synonyms, and phrases that are paraphrases. The score is high if many words on both sides are
matched (function words count less) and if they stand in the same order, so that the output need not
be cut into many chunks to arrange it like the reference.

    normalize      a text -> its tokens
    Output, Pair   what could be matched, the alignment that METEOR chooses, 23 numbers of it
    score          the formula, from the 23 numbers of a pair or from their sums over a corpus
    Meteor         a corpus: for each output the reference with the highest score, and the sums
"""

import functools
import operator
import re
import string
from collections import defaultdict

from metrics import meteor_data
from metrics.meteor_data import Lexicon, Paraphrases, ngrams
from metrics.porter2 import stem
from metrics.ptb import java_characters
from support.files import InputError

HOW_TO_GET = ("METEOR needs data of its own (68 MB): `pip install pycocoevalcap`, or download them "
              "with `python -m metrics.download`, or let METEOR_DATA name a folder that has them.")

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)  # the modules, each a reason for a match
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # what a match by each of them is worth in the score
MOST_BITS = 1_000_000_000  # matches times words: more, and the search takes minutes, or gigabytes
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
    for code in java_characters(word):
        total = (31 * total + code) & 0xFFFFFFFF
    return total


# --- What could be matched


class Reference:
    """A reference, and which phrases of it could be matched with a paraphrase."""

    def __init__(self, tokens, lexicon, paraphrases):
        self.tokens, self.keys = tokens, list(map(key, tokens))
        self.functions = lexicon.functions(tokens)
        self.sources = []  # (j, length, phrase): at j starts a phrase that has paraphrases
        self.targets = {}  # a phrase that is a paraphrase of an output's -> where it starts
        for j, length, phrase in ngrams(tokens):
            if phrase in paraphrases.from_reference:
                self.sources.append((j, length, phrase))
            if phrase in paraphrases.to_reference:
                self.targets.setdefault(phrase, []).append(j)


class Output:
    """An output, and where in it a word, a stem, a synset or a phrase is found."""

    def __init__(self, tokens, lexicon, paraphrases):
        self.tokens, self.keys = tokens, list(map(key, tokens))
        self.functions = lexicon.functions(tokens)
        self.lexicon, self.paraphrases = lexicon, paraphrases
        self.by_key, self.by_stem, self.by_synset, self.by_phrase = {}, {}, {}, {}  # -> positions
        self.targets = []  # (i, length, paraphrase): at i starts a phrase that has this paraphrase
        for i, length, phrase in ngrams(tokens):
            if phrase in paraphrases.in_outputs:
                self.by_phrase.setdefault(phrase, []).append(i)
                targets = paraphrases.from_output.get(phrase, ())
                self.targets += [(i, length, target) for target in targets]
        for i, word in enumerate(tokens):
            self.by_key.setdefault(key(word), []).append(i)
            self.by_stem.setdefault(key(stem(word)), []).append(i)
            for synset in lexicon.synsets(word):
                self.by_synset.setdefault(synset, []).append(i)
        self.of_word = {}  # the matches of a word, kept as a group of references repeats many words

    def candidates(self, reference):
        """For each position j in a reference the list of the matches that could start there.

        A match is (i, words in the output, words in the reference, module); it starts at i in the
        output. A list has its matches by module, and has those twice whose paraphrase is in the
        table in both directions. Order and repetition have an effect on the alignment.
        """
        if reference.keys == self.keys:
            # The search would find this, too: at no word is another path ahead of it.
            return [[(j, 1, 1, EXACT)] for j in range(len(self.tokens))]
        by_paraphrase = defaultdict(list)
        for j, length, phrase in reference.sources:
            for target in self.paraphrases.from_reference[phrase]:
                n_output = target.count(" ") + 1
                for i in self.by_phrase.get(target, ()):
                    by_paraphrase[j].append((i, n_output, length, PARAPHRASE))
        for i, length, target in self.targets:
            for j in reference.targets.get(target, ()):
                by_paraphrase[j].append((i, length, target.count(" ") + 1, PARAPHRASE))
        lists = [self.word_matches(word) for word in reference.tokens]
        for j, matches in by_paraphrase.items():
            lists[j] = lists[j] + matches
        if sum(map(len, lists)) * len(self.tokens) > MOST_BITS:
            raise InputError(f"METEOR cannot align {len(self.tokens):,} words with a reference of "
                             f"{len(reference.tokens):,}: too many of them are equal; cut the line "
                             f"that begins '{' '.join(self.tokens[:5])}'")
        return lists

    def word_matches(self, word):
        """The matches for a word of a reference: equal words, those of its stem, its synonyms."""
        if word not in self.of_word:
            own, same_stem = key(word), self.by_stem.get(key(stem(word)), ())
            synonyms = set()
            for synset in self.lexicon.synsets(word):
                if synset in self.by_synset:
                    synonyms.update(self.by_synset[synset])
            self.of_word[word] = [
                *((i, 1, 1, EXACT) for i in self.by_key.get(own, ())),
                *((i, 1, 1, STEM) for i in same_stem if self.keys[i] != own),
                *((i, 1, 1, SYNONYM) for i in sorted(synonyms) if self.keys[i] != own),
            ]
        return self.of_word[word]


# --- The alignment

BEAM = 40  # paths that the search keeps
COST = operator.itemgetter(0)
NOWHERE = -1  # the end of the last match, if the word before has none


def _best(paths):
    return sorted(paths, key=COST)[:BEAM]  # of equals, the first stays first


class Pair:
    """An output and one of its references.

    `candidates` are as from Output.candidates, of_output and of_reference say how many of them
    cover each word, and `fixed` has those that are without an alternative, as {j: match}.
    """

    def __init__(self, output, reference):
        self.output, self.reference = output, reference
        self.candidates = output.candidates(reference)
        self.of_output, self.of_reference = [0] * len(output.tokens), [0] * len(reference.tokens)
        for j, matches in enumerate(self.candidates):
            for i, n_output, n_reference, _ in matches:
                for word in range(i, i + n_output):
                    self.of_output[word] += 1
                for word in range(j, j + n_reference):
                    self.of_reference[word] += 1
        self.fixed = {}
        for j, matches in enumerate(self.candidates):
            if len(matches) == 1:
                i, n_output, n_reference, _ = matches[0]
                covered = self.of_output[i : i + n_output] + self.of_reference[j : j + n_reference]
                if set(covered) == {1}:
                    self.fixed[j] = matches[0]

    def align(self):
        """Choose among the candidates as METEOR does: a list of (j, match), by position.

        The search goes through the reference word by word. A path takes one of the matches that
        start at the word, or none of them; the BEAM best paths go on. Best is what has matched most
        words on both sides; of equals, what has fewer chunks; then the smaller distance, the sum of
        abs(j - i); then what was there first.

        Three peculiarities of METEOR's program decide what is found. Matches other than exact ones
        count half, rounded down, so that two single words which are synonyms count 0. The distance
        of a match is added not to the path that takes it, but to the one that it branches off from.
        And fixed matches are taken in advance.
        """
        # A path: its cost; where its last match ends in the output and in the reference; the words
        # of the output that it uses, as bits; its matches, as (last match, those before it).
        paths = [(0, NOWHERE, 0, 0, None)]
        # The cost is one number: a chunk costs more than all distances, a matched word gains more
        # than all chunks.
        longest = max(len(self.of_output), len(self.of_reference))
        chunk = 1 + longest * sum(map(len, self.candidates))
        gain = chunk * (2 + len(self.of_reference))
        after_fixed = 0
        for j, matches in enumerate([*self.candidates, []]):  # at the end the last chunk is closed
            if j < after_fixed:
                continue
            if j in self.fixed or j == len(self.candidates) or self.of_reference[j] == 0:
                # All paths do the same here; they differ in whether it goes on with their chunk.
                i, n_output, n_reference, _ = self.fixed.get(j, (NOWHERE, 0, 1, None))
                new_end = i + n_output
                paths = [(cost + chunk * (end not in (i, NOWHERE)), new_end, reach, used, chosen)
                         for cost, end, reach, used, chosen in _best(paths)]
                after_fixed = j + n_reference
            else:
                paths = self._branch(_best(paths), j, matches, gain, chunk)
        matches = _best(paths)[0][-1]
        alignment = list(self.fixed.items())
        while matches:
            match, matches = matches
            alignment.append(match)
        return sorted(alignment)

    @staticmethod
    def _branch(paths, j, matches, gain, chunk):
        """The paths after position j: each path with each match that it can take, then without."""
        options = []
        for match in matches:
            i, n_output, n_reference, module = match
            exact = module == EXACT
            words = n_output + n_reference if exact else n_output // 2 + n_reference // 2
            ends, mask = (i + n_output, j + n_reference), (1 << n_output) - 1 << i
            options.append((i, *ends, mask, gain * words, abs(j - i), (j, match)))
        branched = []
        for path in paths:
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
            if end != NOWHERE:
                cost += chunk
            branched.append((cost, NOWHERE, reach, used, chosen))
            if len(options) > BEAM:  # so that not all of them are kept for all paths
                branched = _best(branched)
        return branched

    def statistics(self):
        """Align the two and count: the 23 numbers that `score` needs.

        They are the number of words in the output and in the reference; how many of these are
        function words; then for each module the matched content words of the output and of the
        reference, and the matched function words of both; then the chunks, the matched words of the
        output, and the matched words of the reference.
        """
        matched, chunks, ends = [0] * 16, 0, None
        for j, (i, n_output, n_reference, module) in self.align():
            for function in self.output.functions[i : i + n_output]:
                matched[4 * module + 2 * function] += 1
            for function in self.reference.functions[j : j + n_reference]:
                matched[4 * module + 2 * function + 1] += 1
            chunks += (i, j) != ends
            ends = i + n_output, j + n_reference
        output, reference = self.output.functions, self.reference.functions
        return (len(output), len(reference), sum(output), sum(reference), *matched,
                chunks, sum(matched[0::2]), sum(matched[1::2]))


# --- The score


def score(statistics):
    """METEOR from the 23 numbers that Pair.statistics describes:

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
        tokens_of = functools.cache(normalize)
        self.references = [[tokens_of(text) for text in group] for group in references]
        self.table = meteor_data.paraphrases(folder, set().union(*self.references))
        self.wanted = meteor_data.wanted_phrases(self.table)

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
        paraphrases = Paraphrases(self.table, self.wanted, outputs)
        prepare = functools.cache(lambda tokens: Reference(tokens, self.lexicon, paraphrases))
        rows = []
        for tokens, group in zip(outputs, self.references, strict=True):
            output = Output(tokens, self.lexicon, paraphrases)
            pairs = (Pair(output, prepare(reference)) for reference in group)
            rows.append(max((pair.statistics() for pair in pairs), key=score))
        return rows


def prepare(references):
    """A Meteor for these references, or None where METEOR's data are not found."""
    folder = meteor_data.find()
    return None if folder is None else Meteor(references, folder)
