"""Makes the small base model that ships as models/tiny: its vocabulary, then its weights.

A base is worth steering if it can write and waits to be told what. So each row that this one reads
is a small task of its own: a few documents in the form of E2E's examples, table and sentences,
which share what their slots are called, the values that these can have, and the sentences that say
them. The first document of a row must guess all this, the later ones find it in what stands before
them, where a prefix will stand one day. Every table is said whole, each value once.

The sentences are those of real dialogues with their values cut out (`find_patterns`). A table is
said by several of them that share no slot (`Task.write`); more than half of the values are made up,
so that they must be copied and cannot be remembered, and many slots have made-up names.

It is trained in two stages. The rows of the first are short (the card of models/tiny says why);
those of the second are longer and begin at any position, as they do behind a prefix of any length.

    python models/tiny/make.py --data DIR --out models/tiny

DIR holds sgd.jsonl.gz and rnnlg.jsonl.gz.
"""

import argparse
import gzip
import itertools
import json
import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[2]))  # the repository

from e2e_data import tokenise_text, tokenise_value  # noqa: E402
from gpt2 import GPT2, GPT2Config, load_tokenizer, save_model  # noqa: E402
from support.commands import InputError, run_command  # noqa: E402
from support.devices import autocast, pick_device  # noqa: E402
from support.files import read_json, write_aside, write_text  # noqa: E402

SIZES = GPT2Config(n_vocab=4096, n_ctx=512, n_embd=256, n_head=4, n_layer=6)
TOKENS_PER_STEP = 2048
CHUNK = 250  # steps whose rows are written at once
HELD_OUT = 80  # rows that are not trained on
N_TASKS = 8000  # from which the vocabulary is made
WARM_UP = 200  # steps in which the learning rate rises
DECAY = 0.25  # the last part of a stage, in which it falls to 0


@dataclass(frozen=True)
class Stage:
    length: int  # tokens of a row
    steps: int
    lr: float  # the peak learning rate
    anywhere: bool  # do rows begin at any position, or at the first?


STAGES = Stage(128, 12000, 2e-3, anywhere=False), Stage(256, 20000, 1e-3, anywhere=True)

# --------------------------------------------------------------------------------------------------
# Sentences with their values cut out
# --------------------------------------------------------------------------------------------------

FIRST_HOLE = 0xE000  # the characters from here on, which no text uses, stand for slots 0, 1, ...
HOLE = re.compile(f"[{chr(FIRST_HOLE)}-{chr(FIRST_HOLE + 99)}]")
FACTS = ("true", "false", "yes", "no", "none")  # values that a sentence says in words of its own
PLAIN_ACTS = (  # not "there is no such hotel"
    "inform", "recommend", "inform only match", "notify success", "affirm")
OPENING = re.compile(r"^(okay|ok|sure|yes|no problem|great|alright|sorry)\b[ ,.!]*", re.IGNORECASE)


@dataclass(frozen=True)
class Pattern:
    """One sentence: "X is a Y star hotel .", where X and Y are holes for the values of `slots`."""

    text: str
    slots: tuple  # the slots of the holes: chr(FIRST_HOLE + i) is slots[i]
    facts: tuple  # (slot, value) that the sentence says in other words: ("has wifi", "True")

    def all_slots(self):
        return {*self.slots, *dict(self.facts)}

    def has_name(self):
        return any(is_name(slot) for slot in self.slots)


def is_name(slot):
    return slot.endswith("name")


def find_patterns(row):
    """The sentences of a row of the data as Patterns.

    There are none where the text does not say each value exactly once.
    """
    table = [(slot, value) for slot, value in row["table"] if slot not in ("act", "intent")]
    acts = {value for slot, value in row["table"] if slot == "act"}
    values, text = dict(table), row["text"]
    if len(values) < len(table) or "?" in text or not acts <= set(PLAIN_ACTS):
        return []
    if not values or {"?", "dontcare", ""} & set(values.values()):
        return []
    slots = list(values)
    facts = tuple((slot, value) for slot, value in table if value.lower() in FACTS)
    text = re.sub(r" -s\b", "s", " ".join(text.split()))  # RNNLG writes plurals as "laptop -s"
    to_cut = [slot for slot in slots if slot not in dict(facts)]
    for slot in sorted(to_cut, key=lambda slot: (-len(values[slot]), slot)):  # long ones hold short
        value = rf"(?<!\w){re.escape(values[slot])}(?!\w)"
        hole = chr(FIRST_HOLE + slots.index(slot))
        text, times = re.subn(value, hole, text, flags=re.IGNORECASE)
        if times != 1:
            return []
    if not text.endswith((".", "!")):
        is_tokenised = " ." in text or row["domain"] in ("tv", "laptop", "hotel")  # RNNLG's
        text += " ." if is_tokenised else "."
    sentences = re.split(r"(?<=[.!]) (?=\S)", text)
    silent = [text for text in sentences if not HOLE.search(text) and len(text.split()) > 3]
    patterns = []
    for text in sentences:
        its_slots = tuple(slots[ord(hole) - FIRST_HOLE] for hole in HOLE.findall(text))
        # What says the facts is the only sentence, or the only one without a hole.
        its_facts = facts if [text] in (sentences, silent) else ()
        if its_slots or its_facts:
            numbers = itertools.count(FIRST_HOLE)
            text = HOLE.sub(lambda _: chr(next(numbers)), text)
            text = OPENING.sub("", text)
            patterns.append(Pattern(text[:1].upper() + text[1:], its_slots, its_facts))
    said = sum(len(pattern.all_slots()) for pattern in patterns)
    return patterns if said == len(values) else []


@dataclass
class Source:
    """What tasks are made of."""

    patterns: dict  # of each domain, without repetition
    values: dict  # {slot: the values that it has in the data}
    words: list


def read_source(folder):
    """The Source of a folder's sgd.jsonl.gz and rnnlg.jsonl.gz. Raises InputError without one."""
    patterns, values, words = {}, {}, set()  # the inner dicts are sets in the order of the data
    for name in ("sgd", "rnnlg"):
        path = folder / f"{name}.jsonl.gz"
        if not path.exists():
            raise InputError(f"{path} is missing; --data must name the folder of sgd.jsonl.gz and "
                             "rnnlg.jsonl.gz")
        for line in gzip.open(path, "rt", encoding="utf-8"):
            row = json.loads(line)
            words.update(re.findall(r"\b[a-z]{3,}\b", row["text"]))
            if row["speaker"] != "system":
                continue
            for pattern in find_patterns(row):
                patterns.setdefault(row["domain"], {})[pattern] = None
                for slot in pattern.slots:
                    values.setdefault(slot, {})[dict(row["table"])[slot]] = None
    patterns = {domain: list(found) for domain, found in patterns.items()}
    values = {slot: list(found) for slot, found in values.items()}
    return Source(patterns, values, sorted(words))


# --------------------------------------------------------------------------------------------------
# Tasks and their documents
# --------------------------------------------------------------------------------------------------

ACCENTED = {
    "a": "àáâä", "c": "ç", "e": "èéêë", "i": "íîï", "n": "ñ", "o": "óôöø", "u": "úûü"
}
VOWELS = "".join(letter + ACCENTED[letter] for letter in "aeiou")


class Task:
    """What the documents of one row share.

    That is patterns, the names of slots and their order, the values of slots, and the style.
    """

    def __init__(self, source, rng):
        self.rng, self.words = rng, source.words
        domains = list(source.patterns)
        weights = [len(source.patterns[domain]) ** 0.5 for domain in domains]  # none drowns others
        drawn = rng.choices(domains, weights, k=rng.choice((1, 1, 2)))
        known = []
        for domain in dict.fromkeys(drawn):  # each once
            known += source.patterns[domain]
        self.patterns = rng.sample(known, min(len(known), rng.choice((16, 32, 64, 128))))
        slots = sorted({slot for pattern in self.patterns for slot in pattern.all_slots()})
        rng.shuffle(slots)
        slots.sort(key=lambda slot: not is_name(slot))  # names first, as in E2E
        self.order = {slot: place for place, slot in enumerate(slots)}
        self.names = self.name_slots(slots)
        self.values = {slot: self.slot_values(slot, source.values.get(slot, [])) for slot in slots}
        self.true, self.false = rng.choice((("True", "False"), ("yes", "no")))
        self.tokenised = rng.random() < 0.75  # the style of the src1 files

    def name_slots(self, slots):
        """{slot: what it is called in this task}, its own name or a made-up one."""
        renamed, names = self.rng.choice((0.0, 0.5, 1.0)), {}
        for slot in slots:
            name = slot
            if not names and is_name(slot) and self.rng.random() < 0.8:
                name = "name"
            if name == slot and self.rng.random() < renamed:
                name = self.phrase()
            is_taken = name in slots or name in names.values()
            names[slot] = slot if is_taken else name
        return names

    def word(self):
        """A word, or halves of two, which nobody ever read; some with accents."""
        word, other = self.rng.choice(self.words), self.rng.choice(self.words)
        if self.rng.random() < 0.3:
            word = word[: (len(word) + 1) // 2] + other[len(other) // 2 :]
        if self.rng.random() < 0.1:  # a base copies only letters that it has met
            letters = [self.rng.choice(letter + ACCENTED.get(letter, "")) for letter in word]
            word = "".join(letters)
        return word

    def slot_values(self, slot, known):
        """The values that a slot can have in this task.

        They are few or many, of the data or made up, and all of one kind.
        """
        number = self.rng.choice((2, 4, 8, 40))
        if known and self.rng.random() < 0.4:
            return self.rng.sample(known, min(len(known), number))
        kinds = self.name, self.phrase, self.phrase, self.amount
        make_value = self.name if is_name(slot) else self.rng.choice(kinds)
        return [make_value() for _ in range(number)]

    def name(self):
        article, number = self.rng.choice(("The ", "", "", "")), self.rng.choice((1, 2, 2, 3))
        return article + " ".join(self.word().capitalize() for _ in range(number))

    def phrase(self):
        return " ".join(self.word() for _ in range(self.rng.choice((1, 1, 2))))

    def amount(self):
        rng = self.rng
        number = rng.choice((rng.randint(1, 12), rng.randint(1, 999)))
        sign = rng.choice("£$€")
        return rng.choice((
            f"{number}",
            f"{sign}{number}",
            f"{sign}{number}-{number + rng.randint(1, 20)}",
            f"{rng.choice(('less', 'more'))} than {sign}{number}",
            f"{number} {self.word()}",
            f"{number} out of {number + rng.randint(0, 5)}",
        ))

    def write(self):
        """One document, as (table, sentences that say all of it)."""
        named = [pattern for pattern in self.patterns if pattern.has_name()]
        begins_with_name = named and self.rng.random() < 0.7
        first = self.rng.choice(named if begins_with_name else self.patterns)
        chosen, said, wanted = [first], first.all_slots(), self.rng.randint(2, 9)
        for pattern in self.rng.sample(self.patterns, len(self.patterns)):
            its_slots = pattern.all_slots()
            if not said & its_slots and len(said) + len(its_slots) <= wanted:
                chosen.append(pattern)
                said |= its_slots
        table, sentences = {}, []
        for pattern in chosen:
            values = {slot: self.rng.choice(self.values[slot]) for slot in pattern.slots}
            sentences.append(self.fill(pattern, values))
            table |= values
            for slot, value in pattern.facts:
                table[slot] = self.true if value.lower() in ("true", "yes") else self.false
        slots = sorted(table, key=self.order.get)
        pairs = [f"{self.names[slot]} : {tokenise_value(table[slot])}" for slot in slots]
        text = " ".join(sentences)
        return " | ".join(pairs), tokenise_text(text) if self.tokenised else text

    def fill(self, pattern, values):
        """The pattern's sentence with `values` in its holes, and the articles that they want."""

        def say(match):
            article, hole = match[1] or "", match[2]
            value = values[pattern.slots[ord(hole) - FIRST_HOLE]]
            if article.lower() == "the ":
                article = "" if value.startswith("The ") else article
            elif article:
                article = article[0] + ("n " if value[0].lower() in VOWELS else " ")
            return article + value

        with_article = rf"(\b(?:an?|the) )?({HOLE.pattern})"
        return re.sub(with_article, say, pattern.text, flags=re.IGNORECASE)


def write_rows(source, tokenizer, number, length, seed):
    """Rows of `length` tokens and the one that follows, of one task each.

    Returns (tokens int [number, length + 1], has_loss bool [number, length + 1], which is True on
    what is a sentence's).
    """
    rng, tokens, has_loss = random.Random(seed), [], []
    for _ in range(number):
        task, row, in_sentence = Task(source, rng), [], []
        while len(row) <= length:
            for part, is_sentence in zip(task.write(), (False, True)):
                encoded = tokenizer.encode_text(" " + part) + [tokenizer.eot_token]
                row += encoded
                in_sentence += [is_sentence] * len(encoded)
        tokens.append(row[: length + 1])
        has_loss.append(in_sentence[: length + 1])
    return torch.tensor(tokens), torch.tensor(has_loss)


def train_vocabulary(source, size, folder):
    """A byte-level BPE of `size` entries, <|endoftext|> the last, as vocab.json and merges.txt."""

    def texts():
        rng = random.Random("vocabulary")
        for _ in range(N_TASKS):
            task = Task(source, rng)
            for _ in range(4):
                table, sentences = task.write()
                yield " " + table
                yield " " + sentences

    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts(), vocab_size=size - 1, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    path = folder / "vocab.json"
    ids = read_json(path) | {"<|endoftext|>": size - 1}
    write_text(path, json.dumps(ids, ensure_ascii=False))


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def learning_rate(step, stage):
    """A short rise, then constant, and at the end linearly down to 0."""
    rise, fall = (step + 1) / WARM_UP, (stage.steps - step) / (DECAY * stage.steps)
    return stage.lr * min(1, rise, fall)


def first_positions(n_ctx, n_embd):
    """Position embeddings to start from, sines and cosines (Vaswani et al. 2017, section 3.5).

    [n_ctx, n_embd]. From random ones, "the token before this" must be learnt for each position
    anew; among waves it is one rotation.
    """
    speeds = n_ctx ** -torch.linspace(0, 1, n_embd // 2)  # radians a position
    angles = torch.arange(n_ctx)[:, None] * speeds  # [n_ctx, n_embd / 2]
    return 0.03 * torch.cat([angles.sin(), angles.cos()], dim=1)


def row_loss(model, tokens, has_loss, first):
    """The mean loss a token of rows as `write_rows` gives them.

    first      int [B, 1]: the positions at which they begin
    """
    device, T = model.device, tokens.shape[1] - 1
    positions = first + torch.arange(T)  # [B, T]
    logits = model(tokens[:, :-1].to(device), positions=positions.to(device))  # [B, T, n_vocab]
    wanted = has_loss[:, 1:]  # [B, T]: after which tokens is loss
    return F.cross_entropy(logits[wanted.to(device)], tokens[:, 1:][wanted].to(device))


@torch.no_grad()
def held_out_loss(model, tokens, has_loss):
    """The mean of `row_loss` over rows that begin at the first position, ten at a time."""
    first = torch.zeros(1, 1, dtype=torch.long)
    rows = list(zip(tokens.split(10), has_loss.split(10)))
    return sum(row_loss(model, *ten, first).item() for ten in rows) / len(rows)


def first_model(sizes):
    """GPT-2 before its first step, with waves for positions.

    Its initial weights are larger than GPT-2's own, which are meant for wider layers.
    """
    model = GPT2(sizes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("h.") and parameter.dim() == 2:
                parameter.mul_(3)
        model.wpe.weight.copy_(first_positions(sizes.n_ctx, sizes.n_embd))
    return model


def make_optimizer(model):
    """AdamW, which lets matrices decay, and norms and biases not."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def train_step(model, rows, optimizer, lr, dtype):
    """One step of training; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    with autocast(model.device, dtype):
        loss = row_loss(model, *rows)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(number, model, source, tokenizer, dtype, path, state):
    """One stage, from its beginning or from the `state` in which it was stopped.

    What is needed to go on is kept in the file `path`.
    """
    stage, device, n_ctx = STAGES[number], model.device, model.config.n_ctx
    batch_size = TOKENS_PER_STEP // stage.length
    held_out = write_rows(source, tokenizer, HELD_OUT, stage.length, "held out")
    optimizer = make_optimizer(model)
    step = state.get("step", 0)
    if state:
        optimizer.load_state_dict(state["optimizer"])
    elif number > 0:
        seen = STAGES[number - 1].length
        with torch.no_grad():  # the other positions have only decayed
            positions = first_positions(n_ctx, model.config.n_embd).to(device)
            model.wpe.weight[seen:] = positions[seen:]
    with tqdm(total=stage.steps, initial=step, desc=f"stage {number + 1}", unit=" steps") as bar:
        while step < stage.steps:
            rng = random.Random(f"stage {number}, step {step}")
            n_rows, seed = CHUNK * batch_size, rng.random()
            tokens, has_loss = write_rows(source, tokenizer, n_rows, stage.length, seed)
            last = n_ctx - stage.length if stage.anywhere else 0
            first = torch.tensor([[rng.randint(0, last)] for _ in tokens])  # [n_rows, 1]
            batches = zip(*(rows.split(batch_size) for rows in (tokens, has_loss, first)))
            for rows in itertools.islice(batches, stage.steps - step):
                loss = train_step(model, rows, optimizer, learning_rate(step, stage), dtype)
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss:.3f}")
            loss = held_out_loss(model, *held_out)
            bar.write(f"stage {number + 1}, step {step:,}: held-out loss {loss:.3f} a token")
            state = {"stage": number, "step": step, "model": model.state_dict(),
                     "optimizer": optimizer.state_dict()}
            with write_aside(path) as aside:
                torch.save(state, aside)


def make_base(data, out, sizes, vocabulary=None, device="auto", dtype="float32"):
    """Makes a base in the folder `out`; one that was stopped there goes on.

    data         the folder of sgd.jsonl.gz and rnnlg.jsonl.gz
    sizes        a GPT2Config
    vocabulary   the folder of the one to use; without it one is trained, in `out`
    """
    device = pick_device(device)
    torch.manual_seed(0)
    source = read_source(data)
    if not vocabulary and not (out / "merges.txt").exists():
        train_vocabulary(source, sizes.n_vocab, out)
    vocabulary = vocabulary or out
    tokenizer = load_tokenizer(vocabulary)
    model, path, state = first_model(sizes).to(device), out / "training.pt", {}
    if path.exists():
        state = torch.load(path, device, weights_only=True)
        model.load_state_dict(state["model"])
    for number in range(state.get("stage", 0), len(STAGES)):
        train(number, model, source, tokenizer, dtype, path, state)
        state = {}
    save_model(model, out, vocabulary, dtype=torch.float16)
    path.unlink()


def main():
    parser = argparse.ArgumentParser(
        description="Pre-trains a small base model on tables and sentences.")
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR",
        help="holds sgd.jsonl.gz and rnnlg.jsonl.gz")
    add("--out", type=Path, required=True, metavar="DIR",
        help="where the model is written; a run that was stopped goes on from there")
    add("--device", default="auto", help="auto (default), cpu, cuda, ...")
    add("--dtype", default="float32", choices=("float32", "bfloat16"),
        help="bfloat16 (autocast) where the machine multiplies it fast (default: %(default)s)")
    args = parser.parse_args()
    make_base(args.data, args.out, SIZES, device=args.device, dtype=args.dtype)


if __name__ == "__main__":
    run_command(main)
