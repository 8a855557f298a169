"""Byte-level BPE, from OpenAI's files or Hugging Face's, around tokens that were added."""

import itertools
import re

import tiktoken

from support.commands import InputError
from support.files import existing_file, read_json, wrap_errors

# Text is first cut into words, each with the blank before it; only inside them are bytes merged
# (OpenAI's encoder.py).
END = "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
EVERY_KIND = "It's 20 cafés\u00a0near £٣,\r\n\t  中文 ελ 한국🙂\u200b!\x00"
VOCABULARIES = (("tokenizer.json",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
BESIDE = ("added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")
GPT2_PARTS = {  # what a tokenizer.json must say of them, if anything
    "normalizer": {"type": None}, "model": {"type": "BPE"},
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
}


class Tokenizer(tiktoken.Encoding):
    """The BPE of a model, and the tokens that were added to its vocabulary.

    tiktoken merges the pair whose product has the lowest id; that is byte-level BPE where the ids
    follow the order of the merges, which is checked. `decode(ids)` -> text, `eot_token` is
    <|endoftext|>. Raises InputError where a file is corrupt, or not of a tokenizer such as GPT-2's.
    """

    def __init__(self, folder):
        path, *others = vocabulary_files(folder)
        with wrap_errors(path, "and the files beside it hold no byte-level BPE such as GPT-2's"):
            ids, merges, added = read_tables(path, others)
            self.added = added_tokens(ids, added)
            super().__init__(str(path), pat_str=WORDS, mergeable_ranks=rank_tokens(ids, merges),
                             special_tokens=self.added)
            line = " ".join([EVERY_KIND, *self.added])
            if self.decode(self.encode(line, allowed_special="all")) != line:
                raise ValueError("a text is another after encoding and decoding")

    def encode_text(self, text):
        """The tokens of a text. An added token in it is one, but <|endoftext|> is only letters: no
        line of data ends the text that it is part of."""
        return self.encode_around(text, self.added.keys() - {END})

    def encode(self, text, **options):
        """The tokens of a text; with allowed_special="all" <|endoftext|> in it is one as well."""
        if options == {"allowed_special": "all"}:
            return self.encode_around(text, self.added)
        return super().encode(text, **options)

    def encode_around(self, text, added):
        """As transformers: of those that begin at one place, the longest is taken."""
        longest_first = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        tokens = []
        for part in re.split(f"({longest_first})", text) if added else [text]:
            tokens += [self.added[part]] if part in added else self.encode_ordinary(part)
        return tokens

    def ids_without_text(self, n_vocab):
        """The ids that a padded vocabulary has beyond its tokens: nobody may write them."""
        known = {*self._mergeable_ranks.values(), *self.added.values()}
        return sorted(set(range(n_vocab)) - known)


def vocabulary_files(folder):
    """The files of a folder's tokenizer, the vocabulary first. Raises InputError."""
    for vocabulary in VOCABULARIES:
        if all((folder / name).exists() for name in vocabulary):
            paths = [folder / name for name in (*vocabulary, *BESIDE)]
            return [existing_file(path) for path in paths if path.exists()]
    raise InputError(f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor "
                     "tokenizer.json nor OpenAI's encoder.json and vocab.bpe")


def read_tables(path, others):
    """What a tokenizer's files say, the vocabulary's and the others: (ids, merges, added).

    ids       {token: id}; a token's bytes stand there as characters (`bytes_of_characters`)
    merges    the pairs of tokens that are merged, the first one first
    added     of added tokens the text, or {"content": text, ...}
    """
    values = read_json(path)
    if path.name == "tokenizer.json":
        for part, expected in GPT2_PARTS.items():
            if not expected.items() <= (expected | (values.get(part) or {})).items():
                raise ValueError(f"its {part} is not {expected}")
        merges, added = values["model"]["merges"], values["added_tokens"]
        ids = values["model"]["vocab"] | {entry["content"]: entry["id"] for entry in added}
    else:
        lines = others.pop(0).read_text(encoding="utf-8").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
        ids, added = values, []
    found = dict.fromkeys(BESIDE, {}) | {other.name: read_json(other) for other in others}
    more, config, special = (found[name] for name in BESIDE)
    if config.get("add_prefix_space"):
        raise ValueError("add_prefix_space is not supported")
    added += [*more, *config.get("added_tokens_decoder", {}).values()]
    for value in special.values():
        added += value if isinstance(value, list) else [value]
    merges = [merge.split() if isinstance(merge, str) else merge for merge in merges]
    return ids | more, merges, added


def rank_tokens(ids, merges):
    """{bytes: id} of the 256 bytes and of what is merged from them, in the merges' order.

    Other words of the vocabulary are neither read nor written. Raises ValueError where the ids do
    not follow the merges.
    """
    bytes_of = bytes_of_characters()
    known, last = {character: ids[character] for character in bytes_of}, -1
    for left, right in merges:
        i = ids.get(left + right, -1)
        if i <= last or not {left, right} <= known.keys():
            raise ValueError(f"its ids do not follow the merge of {left} and {right}")
        known[left + right] = last = i
    if len(set(known.values())) < len(known):
        raise ValueError("two of its tokens have the same id")
    return {b"".join(map(bytes_of.get, text)): i for text, i in known.items()}


def added_tokens(ids, added):
    """{token: id} of <|endoftext|> and of the tokens that are one wherever they stand in a text."""
    if END not in ids:
        raise ValueError(f"{END} is missing")
    tokens = {END}
    for entry in added:
        if isinstance(entry, dict):
            if any(map(entry.get, ("single_word", "lstrip", "rstrip"))):
                raise ValueError(f"its token {entry['content']!r} takes more than its letters")
            entry = entry["content"]
        tokens.add(entry)
    # What has a purpose and no id, such as a pad_token, is in no model: only letters.
    return {token: ids[token] for token in tokens & ids.keys()}


def bytes_of_characters():
    """{character: byte} of the vocabulary files.

    A printable byte but the blank is itself, the others are U+0100, U+0101, ...
    """
    others = map(chr, itertools.count(256))
    return {chr(byte) if chr(byte).isprintable() and chr(byte) != " " else next(others):
            bytes([byte]) for byte in range(256)}
