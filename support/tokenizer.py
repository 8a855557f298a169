"""Byte-level BPE, from OpenAI's files or Hugging Face's, around tokens that were added.

They come from anywhere: what tokenises otherwise than GPT-2 does is refused by name.
"""

import math
import re

import tiktoken

from support.commands import InputError
from support.files import blaming, existing_file, read_json

# Text is first cut into words, each with the blank before it; only inside them are bytes merged
# (OpenAI's encoder.py).
END = "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class Tokenizer(tiktoken.Encoding):
    """The BPE of a model, and the tokens that were added to its vocabulary.

    tiktoken merges the pair whose product has the lowest id; that is byte-level BPE where the ids
    follow the order of the merges, and each product comes about by its own merge, which is checked
    (`read_vocabulary`). `decode(ids)` -> text, `eot_token` is <|endoftext|>.
    """

    def __init__(self, folder):
        path, ranks, self.added = read_vocabulary(folder, END)
        super().__init__(str(path), pat_str=WORDS, mergeable_ranks=ranks,
                         special_tokens=self.added)

    def encode_text(self, text):
        """The tokens of a text. An added token in it is one, but <|endoftext|> is only letters: no
        line of data ends the text that it is part of."""
        return self.encode_around(text, self.added.keys() - {END})

    def encode(self, text, *, allowed_special=frozenset(), **options):
        """The tokens of a text; with allowed_special="all" <|endoftext|> in it is one as well."""
        if allowed_special == "all":
            return self.encode_around(text, self.added)
        return super().encode(text, allowed_special=allowed_special, **options)

    def encode_around(self, text, added):
        """As transformers: of those that begin at one place, the longest is taken."""
        longest_first = "|".join(map(re.escape, sorted(added, key=len, reverse=True)))
        parts = re.split(f"({longest_first})", text) if added else [text]
        tokens = self.encode_ordinary(parts[0])
        for token, part in zip(parts[1::2], parts[2::2]):
            tokens += [self.added[token], *self.encode_ordinary(part)]
        return tokens

    def ids_without_text(self, n_vocab):
        """The ids that a padded vocabulary has beyond its tokens: nobody may write them."""
        known = {*self._mergeable_ranks.values(), *self.added.values()}
        return sorted(set(range(n_vocab)) - known)


BYTE_LEVEL = (  # what a tokenizer.json may say that does what GPT-2's does: (part, name, allowed)
    ("model", "type", (None, "BPE")), ("model", "dropout", (None, 0)),
    ("model", "continuing_subword_prefix", (None, "")), ("model", "end_of_word_suffix", (None, "")),
    ("model", "ignore_merges", (None, False)), ("normalizer", "type", (None,)),
    ("pre_tokenizer", "type", ("ByteLevel",)), ("pre_tokenizer", "add_prefix_space", (False,)),
    ("pre_tokenizer", "use_regex", (None, True)), ("decoder", "type", ("ByteLevel",)),
    ("post_processor", "type", (None, "ByteLevel", "TemplateProcessing")),
    ("post_processor", "special_tokens", (None, {})),
)


def vocabulary_files(folder):
    """The files of a folder's tokenizer, the vocabulary first."""
    flags = "tokenizer_config.json", "special_tokens_map.json"
    for needed, others in ((("tokenizer.json",), flags),
                           (("vocab.json", "merges.txt"), ("added_tokens.json", *flags)),
                           (("encoder.json", "vocab.bpe"), flags)):
        if all((folder / name).exists() for name in needed):
            paths = [folder / name for name in (*needed, *others)]
            return [existing_file(path) for path in paths if path.exists()]
    raise InputError(f"{folder} holds no tokenizer: neither vocab.json and merges.txt nor "
                     "tokenizer.json nor OpenAI's encoder.json and vocab.bpe")


def read_vocabulary(folder, end):
    """A folder's byte-level BPE: (its file, ranks, added).

    ranks   {bytes: id} of the 256 bytes and of what is merged from them, in the merges' order
    added   {token: id} of `end` and of the tokens that are one wherever they stand in a text
    Raises InputError where it is damaged, or tokenises in any way that GPT-2 does not.
    """
    path, *others = vocabulary_files(folder)
    found = {other.name: read_json(other) for other in others if other.suffix == ".json"}
    with blaming(path, "holds no byte-level BPE such as GPT-2's"):
        values, entries = read_json(path), []
        if path.name == "tokenizer.json":
            for part, name, allowed in BYTE_LEVEL:
                if (value := (values.get(part) or {}).get(name)) not in allowed:
                    raise ValueError(f"{name} of its {part} is {value!r}, not {allowed[-1]!r}")
            entries += values.get("added_tokens") or []
            ids, merges = values["model"]["vocab"], values["model"]["merges"]
            merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        else:
            ids, merges = values, others[0].read_text(encoding="utf-8", errors="replace")
            merges = ["" if line.startswith("#version") else line for line in merges.splitlines()]
        for token, i in found.get("added_tokens.json", {}).items():
            entries.append({"content": token, "id": i})
        config = found.get("tokenizer_config.json", {})
        for i, entry in (config.get("added_tokens_decoder") or {}).items():
            entries.append(entry | {"id": int(i)})
        if config.get("add_prefix_space"):
            raise ValueError("add_prefix_space is not supported")
        entries += special_tokens(config)
        entries += special_tokens(found.get("special_tokens_map.json", {}))
        added = {end}
        for entry in entries:
            token = entry["content"]
            i = entry.get("id", ids.get(token))
            if i is None:  # what has a purpose and no id is in no model: only letters
                continue
            added.add(token)
            for name in ("single_word", "lstrip", "rstrip"):
                if entry.get(name):
                    raise ValueError(f"{name} of its token {token!r} is not supported")
            if not token.encode() or ids.setdefault(token, i) != i:
                raise ValueError(f"its token {token!r} is empty or has two ids")
        if end not in ids:
            raise ValueError(f"{end} is missing")
        are_ids = all(type(i) is int and 0 <= i < 2**31 for i in ids.values())
        if not are_ids or len(set(ids.values())) < len(ids):
            raise ValueError("the ids must be whole numbers, each another one")
        bytes_of = bytes_of_characters()
        if not bytes_of.keys() <= ids.keys():
            raise ValueError("some of the 256 bytes have no token")
    known, last = {character: ids[character] for character in bytes_of}, -1
    halves, numbers = {}, {}
    for number, merge in enumerate(merges, 1):
        if merge:
            left, _, right = merge.partition(" ")
            where = f"{path}, merge" if path.name == "tokenizer.json" else f"{others[0]}, line"
            if ids.get(left + right, -1) <= last or not {left, right} <= known.keys():
                raise InputError(
                    f"{where} {number}: the ids in {path.name} do not follow the merges")
            if is_merged_across(left, right, halves, numbers):
                raise InputError(f"{where} {number}: other merges come first inside of "
                                 f"{left + right!r}, so that no text ever becomes this token")
            known[left + right] = last = ids[left + right]
            halves[left + right], numbers[left, right] = (left, right), number
    # A word of the vocabulary that is neither a byte nor merged nor added is never read or written.
    ranks = {b"".join(map(bytes_of.get, text)): i for text, i in known.items()}
    return path, ranks, {token: ids[token] for token in added}


def is_merged_across(left, right, halves, numbers):
    """Whether BPE, which reads left + right, makes a token across their boundary, so that the two
    never stand side by side.

    halves    {token: (left, right)} of all that is merged so far, numbers {(left, right): which
              merge it is}
    It goes back from the end: what of the two was made last is undone, and what then meets at the
    boundary may have been merged before. (Of equal merges the left one comes first.) The time grows
    with the number of merges, and not with that of letters.
    """
    before = math.inf
    while numbers.get((left, right), math.inf) >= before:
        made_left, made_right = (numbers.get(halves.get(token), -1) for token in (left, right))
        if made_left == made_right == -1:  # two bytes
            return False
        if made_left > made_right:
            left, before = halves[left][1], made_left
        else:
            right, before = halves[right][0], made_right + 1
    return True


def special_tokens(values):
    """Entries {"content": token, ...} for what a file names by purpose, such as pad_token."""
    for name, value in values.items():
        if name.endswith(("_token", "_special_tokens")):
            if isinstance(value, dict) and "content" not in value:
                value = [*value.values()]  # extra_special_tokens, with their purposes
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, (str, dict)):  # not null, nor a flag such as add_bos_token
                    yield {"content": token} if isinstance(token, str) else token


def bytes_of_characters():
    """{character: byte} of the vocabulary files.

    A printable byte but the blank is itself, the others are U+0100, U+0101, ...
    """
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): bytes([byte]) for byte in printable}
    return characters | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
