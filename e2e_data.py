"""The E2E data (Novikova et al. 2017): from a table to a batch.

A table and a sentence about it become one example: the tokens of the table, a token that ends it,
and the tokens of the sentence. Only the sentence counts in the loss.

    python e2e_data.py --data sample        shows the data as the model sees it
"""

import argparse
import math
import random
import re
from dataclasses import dataclass

import torch

from gpt2 import load_tokenizer
from support.commands import InputError, run_command
from support.files import sha256
from support.reading import (SPLITS, find_data, is_published, json_type, one_line, read_raw,
                             single_blanks, split_path, unread_files)
from support.speed import pad

# --------------------------------------------------------------------------------------------------
# From a table to the text that the model reads
# --------------------------------------------------------------------------------------------------


def read_split(folder, split):
    """The examples of "train", "valid" or "test" as (table, sentence), in the file's order."""
    return [example for _, example in read_examples(folder, split)]


def read_examples(folder, split):
    """As `read_split`, each after its place: ("FILE, line N", example). InputErrors name it."""
    examples = []
    for location, table, sentence in read_raw(folder, split):
        try:
            examples.append((location, (read_table(table), one_line(sentence))))
        except InputError as error:
            raise InputError(f"{location}: {error}") from None
    return examples


def read_table(table):
    """Converts a table in any form to the form that the model reads. Raises InputError.

    E2E's own form, `name[Cocum], eatType[pub]` from its first to its last character, becomes
    `name : Cocum | Type : pub`, as Li & Liang prepared it. Other forms keep their keys and values,
    with single blanks: `name : Cocum | Type : pub`, the dict {"name": "Cocum", "Type": "pub"}, the
    pairs [["name", "Cocum"], ["Type", "pub"]]. A result is not read again: its brackets could look
    like E2E's.
    """
    if isinstance(table, dict):
        table = list(table.items())
    if isinstance(table, (list, tuple)):
        return one_line(join_slots(map(read_slot, table)), "table")
    table = one_line(table, "table")
    if re.fullmatch(E2E_FORM, table):
        return one_line(linearize(table))
    if not all(" : " in f"{slot} " for slot in table.split(" | ")):
        raise InputError("`key[value], key[value], ...` or `key : value | key : value | ...` was "
                         f"expected, but it is {table[:200]!r}")
    return table


def read_slot(slot):
    """The (key, value) of a dict's item or of a pair, as texts. Raises InputError."""
    if not isinstance(slot, (list, tuple)) or len(slot) != 2:
        raise InputError(f"a slot of the table is {str(slot)[:200]}, but must be a pair, [key, "
                         "value]; write triples as `subject : relation : object | ...`")
    key, value = (str(part) if type(part) is int or type(part) is float and math.isfinite(part)
                  else part for part in slot)
    if not isinstance(key, str) or not key.strip():
        raise InputError(f"a key of the table is {repr(key)[:200]}, but must be a text")
    if not isinstance(value, str):
        raise InputError(f"{key[:60]} of the table is {json_type(value)}, but must be a text; "
                         "write it as one, or leave the slot out")
    return key, value


WITHOUT = {"valid": "no validation loss is measured", "test": "nothing is described and scored"}
KEYS = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
SLOT = r"([^\s\[\],:|](?:[^\[\],:|]*[^\s\[\],:|])?)\[([^\[\]]*)\]"  # key[value]
E2E_FORM = f"{SLOT}(?:, {SLOT})*"


def linearize(meaning_representation):
    """Converts E2E's form of a table to the form that the model reads, as Li & Liang do.

    >>> linearize("name[Blue Spice], eatType[coffee shop], priceRange[£20-25]")
    'name : Blue Spice | Type : coffee shop | price : £ 20 - 25'
    """
    text = meaning_representation.strip()
    if not re.fullmatch(E2E_FORM, text):
        raise InputError(f"`key[value], key[value], ...` was expected, but it is {text[:200]!r}")
    return join_slots((KEYS.get(key, key), tokenise_value(value))
                      for key, value in re.findall(SLOT, text))


def join_slots(slots):
    """Joins pairs of key and value to the form that the model reads. Raises InputError."""
    texts = []
    for slot in slots:
        key, value = map(single_blanks, slot)
        if "|" in tokenise_value(f"{key} {value}").split():  # E2E's form would be cut there
            raise InputError("a | with blanks around it divides slots, and cannot be in one: "
                             f"{key[:60]!r}, {value[:200]!r}")
        texts.append(f"{key} : {value}")
    return " | ".join(texts)


def tokenise_value(value):
    """Puts blanks around £ and -, as in the src1 files."""
    return " ".join(re.sub(r"([£-])", r" \1 ", value).split())


def tokenise_text(text):
    """Text with blanks between words, punctuation and clitics, as in the src1 files.

    >>> tokenise_text("It's family-friendly, rated 4.5, isn't it?")
    "It 's family - friendly , rated 4.5 , is n't it ?"
    """
    text = re.sub(r"([,;:!?()\[\]\"£$%&/-]|\.(?!\d))", r" \1 ", text)
    text = re.sub(r"(n't|'(?:s|re|ve|ll|d|m))\b", r" \1", text)
    return " ".join(text.split())


def group_by_table(examples):
    """{table: [sentence, ...]} in the order of first appearance, so that each table is described
    once."""
    groups = {}
    for table, sentence in examples:
        groups.setdefault(table, []).append(sentence)
    return groups


# --------------------------------------------------------------------------------------------------
# From text to batches
# --------------------------------------------------------------------------------------------------


def encode_table(tokenizer, table):
    """The prompt: the tokens of " " + table, as `read_table` gives it, then <|endoftext|>.

    GPT-2's tokens for words start with a blank, so with a blank in front "name" is the same token
    at the beginning as anywhere else. <|endoftext|> marks the end of the table. The model has seen
    it only between texts, so it cannot be mistaken for a part of the table or the sentence.
    """
    return tokenizer.encode_text(" " + table) + [tokenizer.eot_token]


def encode_example(tokenizer, table, sentence):
    """A training example: (tokens of the prompt, tokens of " " + sentence and <|endoftext|>)."""
    answer = tokenizer.encode_text(" " + sentence.strip()) + [tokenizer.eot_token]
    return encode_table(tokenizer, table), answer


def check_lengths(examples, n_ctx):
    """Raises InputError if examples are too long for a model; it names the first and their number.

    examples   (where, length of the prefix, prompt, number of new tokens)
    """
    too_long = [(location, P, len(prompt), n_new) for location, P, prompt, n_new in examples
                if P + len(prompt) + n_new - 1 > n_ctx]  # the last token is never read
    if too_long:
        location, P, n_table, n_new = too_long[0]
        raise InputError(f"{location}: a prefix of {P}, a table of {n_table:,} and a sentence of "
                         f"{n_new:,} tokens are more than the {n_ctx} that the model has; leave "
                         f"out or shorten such examples, {len(too_long):,} in all, or take a "
                         "shorter prefix or a smaller --max-new-tokens")


def encode_splits(settings, model, tokenizer):
    """({split: its examples, encoded}, {name: SHA-256 of each file}).

    Raises InputError for examples that have no room in the model, naming file and line.
    """
    folder, encoded, made_from, lengths = find_data(settings.data), {}, {}, []
    P = settings.prefix_length if settings.mode == "prefix" else 0
    for split in SPLITS:
        path, encoded[split] = split_path(folder, split), []
        if split in WITHOUT and not path.exists():
            print(f"{path} is missing: {WITHOUT[split]}.")
            if others := unread_files(folder):
                print(f"note: not read: {', '.join(others)}; if this split is among them, save it "
                      f"as {path.name}")
            made_from[f"{split}_sha256"] = ""
            continue
        for location, example in read_examples(folder, split):
            prompt, answer = encode_example(tokenizer, *example)
            encoded[split].append((prompt, answer))
            n_new = settings.max_new_tokens if split == "test" else len(answer)
            lengths.append((location, P, prompt, n_new))
        made_from[f"{split}_sha256"] = sha256(path)
    check_lengths(lengths, model.config.n_ctx)
    if settings.max_examples:  # the first batch of an epoch before the others
        encoded["train"] = shuffled_batches(encoded["train"], settings.max_examples, settings.seed,
                                            epoch=-1)[0]
    return encoded, made_from


def count_targets(encoded):
    """How many tokens carry loss in examples as `encode_example` gives them."""
    return sum(len(answer) for _, answer in encoded)


@dataclass
class Batch:
    """A batch of training examples.

    The loss counts the sentence and the <|endoftext|> that ends it, but not the table: the table is
    given, and predicting it would not help to describe it.
    """

    tokens: torch.Tensor  # int [B, T], padded on the right
    token_indices: torch.Tensor  # int [N]: indices of the real tokens in B * T
    loss_indices: torch.Tensor  # int [M]: indices in B * T of the positions whose predictions count
    targets: torch.Tensor  # int [M]: the correct next tokens there


def make_batch(encoded, device="cpu"):
    """The Batch of examples as `encode_example` gives them."""
    rows = [prompt + answer[:-1] for prompt, answer in encoded]  # the last is only ever a target
    tokens, token_indices = pad(rows, device)
    loss_indices, targets, T = [], [], tokens.shape[1]
    for number, (row, (_, answer)) in enumerate(zip(rows, encoded)):
        end = number * T + len(row)
        loss_indices += range(end - len(answer), end)  # the prompt's last token predicts the first
        targets += answer
    loss_indices = torch.tensor(loss_indices, device=device)
    return Batch(tokens, token_indices, loss_indices, torch.tensor(targets, device=device))


def shuffled_batches(encoded, batch_size, seed, epoch):
    """The examples of an epoch in batches. The order depends only on seed and epoch."""
    order = list(range(len(encoded)))
    random.Random(f"{seed} {epoch}").shuffle(order)
    starts = range(0, len(order), batch_size)
    return [[encoded[i] for i in order[at : at + batch_size]] for at in starts]


# --------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description="Shows a data set as the model sees it.")
    parser.add_argument("--data", default="sample", metavar="e2e|sample|DIR",
                        help="sample (default), e2e (downloaded on first use), or a folder")
    parser.add_argument("--model", default="tiny", metavar="NAME|DIR",
                        help="whose tokenizer to use (default: tiny)")
    args = parser.parse_args()
    folder, tokenizer = find_data(args.data), load_tokenizer(args.model)
    print(f"{'split':<6} {'examples':>8} {'tables':>7}   tokens: {'mean':>5} {'longest':>8} "
          f"{'with loss':>10}   file")
    for split in [split for split in SPLITS if split_path(folder, split).exists()]:
        examples = read_split(folder, split)
        encoded = [encode_example(tokenizer, *example) for example in examples]
        lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
        mean, loss = sum(lengths) / len(lengths), sum(len(answer) for _, answer in encoded)
        path = split_path(folder, split)
        known = "as published" if is_published(path) else "not one of the published files"
        print(f"{split:<6} {len(examples):>8,} {len(group_by_table(examples)):>7,}           "
              f"{mean:>5.0f} {max(lengths):>8} {loss / sum(lengths):>10.0%}   {path.name}: {known}")
    table, sentence = examples[0]
    prompt, answer = encode_example(tokenizer, table, sentence)
    batch = make_batch([(prompt, answer)])
    targets = dict(zip(batch.loss_indices.tolist(), batch.targets.tolist()))
    print(f"\nThe first {split} table\n  {table}\nand one of its sentences\n  {sentence}\nbecome\n")
    print("  position  token                 target (what the loss asks for here)")
    for position, token in enumerate(batch.tokens[0].tolist()):
        target = repr(tokenizer.decode([targets[position]])) if position in targets else "-"
        print(f"  {position:>8}  {tokenizer.decode([token])!r:<20}  {target}")


if __name__ == "__main__":
    run_command(main)
