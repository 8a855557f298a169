"""Pre-trains the small base model that ships as models/tiny: its vocabulary, then its weights, in two stages.

A base is worth steering if it can write and waits to be told what. So each row that this one reads is a small task of
its own: a few documents in the form of E2E's examples, table and sentences, which share what their slots are called,
the values that these can have, and the sentences that say them. The first document of a row must guess all this, the
later ones find it in what stands before them, where a prefix will stand one day. Every table is said whole, each value
once.

The sentences are those of real dialogues with their values cut out (`find_patterns`). A table is said by several of
them that share no slot (`Task.write`); more than half of the values are made up, so that they must be copied and cannot
be remembered, and many slots have made-up names.

The rows of the first stage are short (the card of models/tiny says why); those of the second are longer and begin at
any position, as they do behind a prefix of any length.

    python pretrain.py --data DIR --out models/tiny         DIR holds sgd.jsonl.gz and rnnlg.jsonl.gz
"""

import argparse
import gzip
import json
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm

from common import InputError, run_command, write_aside
from e2e_data import NO_LOSS, tokenise_text, tokenise_value
from gpt2 import GPT2, GPT2Config, load_tokenizer, pick_device, save_model

N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER = 4096, 512, 256, 4, 6
TOKENS_PER_STEP = 2048
CHUNK = 250  # steps whose rows are written at once
HELD_OUT = 80  # rows that are not trained on
WARM_UP, DECAY = 200, 0.25  # steps of rising learning rate; the last part of a stage, in which it falls to 0


@dataclass(frozen=True)
class Stage:
    length: int  # tokens of a row
    steps: int
    lr: float  # the peak learning rate
    anywhere: bool  # do rows begin at any position, or at the first?


STAGES = Stage(128, 12000, 2e-3, anywhere=False), Stage(256, 20000, 1e-3, anywhere=True)

# ---------------------------------------------------------------------------------------------------------------------
# Sentences with their values cut out
# ---------------------------------------------------------------------------------------------------------------------

FIRST_HOLE = 0xE000  # the characters from here on, which no text uses, stand for the first, second, ... slot
HOLE = re.compile(f"[{chr(FIRST_HOLE)}-{chr(FIRST_HOLE + 99)}]")
FACTS = ("true", "false", "yes", "no", "none")  # values that a sentence says in words of its own
PLAIN_ACTS = ("inform", "recommend", "inform only match", "notify success", "affirm")  # not "there is no such hotel"


@dataclass(frozen=True)
class Pattern:
    """One sentence: "X is a Y star hotel .", where X and Y are holes for the values of `slots`."""

    text: str
    slots: tuple  # the slots of the holes: chr(FIRST_HOLE + i) is slots[i]
    facts: tuple  # (slot, value) that the sentence says in other words: ("has wifi", "True")

    def all_slots(self):
        return {*self.slots, *(slot for slot, _ in self.facts)}


def find_patterns(row):
    """The sentences of a row of the data as Patterns; none where the text does not say each value exactly once."""
    table = [(slot, value) for slot, value in row["table"] if slot not in ("act", "intent")]
    values = dict(table)
    acts = [value for slot, value in row["table"] if slot == "act"]
    if len(values) < len(table) or "?" in row["text"] or not set(acts) <= set(PLAIN_ACTS):
        return []
    if not values or {"?", "dontcare", ""} & set(values.values()):
        return []
    text = re.sub(r" -s\b", "s", " ".join(row["text"].split()))  # RNNLG writes plurals as "laptop -s"
    slots, facts = list(values), [(slot, value) for slot, value in table if value.lower() in FACTS]
    for slot in sorted(values.keys() - dict(facts).keys(), key=lambda slot: (-len(values[slot]), slot)):
        hole = chr(FIRST_HOLE + slots.index(slot))
        text, times = re.subn(rf"(?<!\w){re.escape(values[slot])}(?!\w)", hole, text, flags=re.IGNORECASE)
        if times != 1:
            return []
    if not text.endswith((".", "!")):  # RNNLG's texts are tokenised
        text += " ." if " ." in text or row["domain"] in ("tv", "laptop", "hotel") else "."
    sentences = re.split(r"(?<=[.!]) (?=\S)", text)
    silent = [sentence for sentence in sentences if not HOLE.search(sentence) and len(sentence.split()) > 3]
    patterns = []
    for sentence in sentences:
        # A sentence with no hole that is the only such one, or the only one at all, is what says the facts.
        its_facts = facts if sentences == [sentence] or silent == [sentence] else []
        its_slots = tuple(slots[ord(hole) - FIRST_HOLE] for hole in HOLE.findall(sentence))
        if its_slots or its_facts:
            holes = iter(range(len(its_slots)))
            sentence = HOLE.sub(lambda _: chr(FIRST_HOLE + next(holes)), sentence)
            sentence = re.sub(r"^(okay|ok|sure|yes|no problem|great|alright|sorry)\b[ ,.!]*", "", sentence,
                              flags=re.IGNORECASE)
            patterns.append(Pattern(sentence[:1].upper() + sentence[1:], its_slots, tuple(its_facts)))
    said = sum(len(pattern.all_slots()) for pattern in patterns)
    return patterns if said == len(values) else []


@dataclass
class Source:
    """What tasks are made of."""

    patterns: dict  # of each domain, without repetition
    values: dict  # {slot: the values that it has in the data}
    words: list


def read_source(folder):
    """The Source of a folder's sgd.jsonl.gz and rnnlg.jsonl.gz. Raises InputError where one is missing."""
    patterns, values, words = {}, {}, set()
    for name in ("sgd", "rnnlg"):
        for row in read_rows(folder / f"{name}.jsonl.gz"):
            words.update(re.findall(r"\b[a-z]{3,}\b", row["text"]))
            if row["speaker"] == "system":
                for pattern in find_patterns(row):
                    patterns.setdefault(row["domain"], {})[pattern] = None  # a set in the order of the data
                    for slot in pattern.slots:
                        values.setdefault(slot, {})[dict(row["table"])[slot]] = None
    return Source({domain: list(found) for domain, found in patterns.items()},
                  {slot: list(found) for slot, found in values.items()}, sorted(words))


def read_rows(path):
    if not path.exists():
        raise InputError(f"{path} is missing; --data must name the folder of sgd.jsonl.gz and rnnlg.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Tasks and their documents
# ---------------------------------------------------------------------------------------------------------------------

ACCENTED = {"a": "àáâä", "c": "ç", "e": "èéêë", "i": "íîï", "n": "ñ", "o": "óôöø", "u": "úûü"}
VOWELS = "".join(letter + ACCENTED[letter] for letter in "aeiou")


class Task:
    """What the documents of one row share: patterns, the names of slots and their order, values, style."""

    def __init__(self, source, rng):
        self.rng, self.words = rng, source.words
        domains = list(source.patterns)
        weights = [len(source.patterns[domain]) ** 0.5 for domain in domains]  # large ones do not drown the others
        known = [pattern for domain in dict.fromkeys(rng.choices(domains, weights, k=rng.choice((1, 1, 2))))
                 for pattern in source.patterns[domain]]
        self.patterns = rng.sample(known, min(len(known), rng.choice((16, 32, 64, 128))))
        slots = sorted({slot for pattern in self.patterns for slot in pattern.all_slots()})
        rng.shuffle(slots)
        slots.sort(key=lambda slot: not slot.endswith("name"))  # as in E2E; the others in any order, but a fixed one
        self.order = {slot: place for place, slot in enumerate(slots)}
        renamed = rng.choice((0.0, 0.5, 1.0))
        self.names = {}
        for slot in slots:
            name = "name" if not self.names and slot.endswith("name") and rng.random() < 0.8 else slot
            name = self.phrase() if name == slot and rng.random() < renamed else name
            self.names[slot] = slot if name in {*slots, *self.names.values()} else name
        self.values = {slot: self.slot_values(slot, source.values.get(slot, [])) for slot in slots}
        self.true, self.false = rng.choice((("True", "False"), ("yes", "no")))
        self.tokenised = rng.random() < 0.75  # the style of the src1 files

    def word(self):
        """A word, or halves of two, which nobody ever read; some with accents, which the data hardly have."""
        word, other = self.rng.choice(self.words), self.rng.choice(self.words)
        if self.rng.random() < 0.3:
            word = word[: (len(word) + 1) // 2] + other[len(other) // 2 :]
        if self.rng.random() < 0.1:  # a base copies only letters that it has met
            word = "".join(self.rng.choice(letter + ACCENTED.get(letter, "")) for letter in word)
        return word

    def slot_values(self, slot, known):
        """The values that a slot can have in this task: few or many, of the data or made up, all of one kind."""
        number = self.rng.choice((2, 4, 8, 40))
        if known and self.rng.random() < 0.4:
            return self.rng.sample(known, min(len(known), number))
        kinds = self.name, self.phrase, self.phrase, self.amount
        make_value = self.name if slot.endswith("name") else self.rng.choice(kinds)
        return [make_value() for _ in range(number)]

    def name(self):
        return self.rng.choice(("The ", "", "", "")) + " ".join(
            self.word().capitalize() for _ in range(self.rng.choice((1, 2, 2, 3))))

    def phrase(self):
        return " ".join(self.word() for _ in range(self.rng.choice((1, 1, 2))))

    def amount(self):
        number, sign = self.rng.choice((self.rng.randint(1, 12), self.rng.randint(1, 999))), self.rng.choice("£$€")
        return self.rng.choice((f"{number}", f"{sign}{number}", f"{sign}{number}-{number + self.rng.randint(1, 20)}",
                                f"{self.rng.choice(('less', 'more'))} than {sign}{number}", f"{number} {self.word()}",
                                f"{number} out of {number + self.rng.randint(0, 5)}"))

    def write(self):
        """One document, as (table, sentences that say all of it)."""
        named = [pattern for pattern in self.patterns if any(slot.endswith("name") for slot in pattern.slots)]
        first = self.rng.choice(named if named and self.rng.random() < 0.7 else self.patterns)  # mostly it has a name
        chosen, said, wanted = [first], first.all_slots(), self.rng.randint(2, 9)
        for pattern in self.rng.sample(self.patterns, len(self.patterns)):
            its_slots = pattern.all_slots()
            if not said & its_slots and len(said) + len(its_slots) <= wanted:
                chosen.append(pattern)
                said |= its_slots
        table, sentences = {}, []
        for pattern in chosen:
            values = {slot: self.rng.choice(self.values[slot]) for slot in pattern.slots}
            table |= values | {slot: self.true if value.lower() in ("true", "yes") else self.false
                               for slot, value in pattern.facts}
            sentences.append(self.fill(pattern, values))
        slots = sorted(table, key=self.order.get)
        text = " ".join(sentences)
        return (" | ".join(f"{self.names[slot]} : {tokenise_value(table[slot])}" for slot in slots),
                tokenise_text(text) if self.tokenised else text)

    def fill(self, pattern, values):
        """The pattern's sentence with `values` in its holes, and the articles that they want."""

        def say(match):
            article, value = match[1] or "", values[pattern.slots[ord(match[2]) - FIRST_HOLE]]
            if article.lower() == "the ":
                article = "" if value.startswith("The ") else article
            elif article:
                article = article[0] + ("n " if value[0].lower() in VOWELS else " ")
            return article + value

        return re.sub(rf"(\b(?:an?|the) )?({HOLE.pattern})", say, pattern.text, flags=re.IGNORECASE)


def write_rows(source, tokenizer, number, length, seed):
    """Rows of one task each: tokens int [number, length] and targets, NO_LOSS where they are not a sentence's."""
    rng = random.Random(seed)
    tokens, targets = torch.empty(2, number, length, dtype=torch.long)
    for row in range(number):
        task, stream, counted = Task(source, rng), [], []
        while len(stream) <= length:
            for part, has_loss in zip(task.write(), (False, True)):
                encoded = tokenizer.encode_ordinary(" " + part) + [tokenizer.eot_token]
                stream += encoded
                counted += [has_loss] * len(encoded)
        tokens[row] = torch.tensor(stream[:length])
        targets[row] = torch.tensor([token if has_loss else NO_LOSS for token, has_loss in
                                     zip(stream[1 : length + 1], counted[1:])])
    return tokens, targets


def train_vocabulary(source, size, folder):
    """A byte-level BPE of `size` entries, <|endoftext|> the last of them, written as vocab.json and merges.txt."""
    rng = random.Random("vocabulary")
    texts = (" " + part for _ in range(8000) for task in [Task(source, rng)] for _ in range(4) for part in task.write())
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator(texts, vocab_size=size - 1, show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    path = folder / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    with write_aside(path) as aside:
        aside.write_text(json.dumps(ids | {"<|endoftext|>": size - 1}, ensure_ascii=False), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate(step, stage):
    """A short rise, then constant, and at the end linearly down to 0."""
    return stage.lr * min(1, (step + 1) / WARM_UP, (stage.steps - step) / (DECAY * stage.steps))


def first_positions():
    """Position embeddings to start from (Vaswani et al. 2017, section 3.5): sines and cosines, [N_CTX, N_EMBD].

    From random ones, "the token before this" must be learnt for each position anew; among waves it is one rotation.
    """
    speeds = N_CTX ** -torch.linspace(0, 1, N_EMBD // 2)  # radians a position
    angles = torch.arange(N_CTX)[:, None] * speeds  # [N_CTX, N_EMBD / 2]
    return 0.03 * torch.cat([angles.sin(), angles.cos()], dim=1)


def row_loss(model, tokens, targets, first):
    """The mean loss a token of rows whose first tokens stand at the positions `first` int [B, 1]."""
    positions = first + torch.arange(tokens.shape[1], device=tokens.device)  # [B, T]
    counted = targets != NO_LOSS
    features, _ = model.features(tokens, positions=positions, wanted=counted)  # [M, n_embd]
    return F.cross_entropy(model.logits(features), targets[counted])


@torch.no_grad()
def held_out_loss(model, tokens, targets):
    """The mean of `row_loss` over rows that begin at the first position, ten at a time."""
    first = torch.zeros(1, 1, dtype=torch.long, device=tokens.device)
    losses = [row_loss(model, *rows, first).item() for rows in zip(tokens.split(10), targets.split(10))]
    return sum(losses) / len(losses)


def first_model():
    """GPT-2 with larger initial weights than its own, which are meant for wider layers, and waves for positions."""
    model = GPT2(GPT2Config(N_VOCAB, N_CTX, N_EMBD, N_HEAD, N_LAYER))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("h.") and parameter.dim() == 2:
                parameter.mul_(3)
        model.wpe.weight.copy_(first_positions())
    return model


def train(number, model, source, tokenizer, dtype, path, state):
    """One stage, from its beginning or from the `state` in which it was stopped; `path` is where that is kept."""
    stage, device = STAGES[number], model.wte.weight.device
    batch_size = TOKENS_PER_STEP // stage.length
    held_out = [part.to(device) for part in write_rows(source, tokenizer, HELD_OUT, stage.length, "held out")]
    print(f"stage {number + 1}: {stage.steps * TOKENS_PER_STEP / 1e6:,.1f} million tokens in rows of {stage.length}, "
          f"{(held_out[1] != NO_LOSS).float().mean():.0%} with loss", flush=True)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), fused=True)
    step, started = 0, time.monotonic()
    if state:
        optimizer.load_state_dict(state["optimizer"])
        step, started = state["step"], started - state["seconds"]
    elif number > 0:
        seen = STAGES[number - 1].length
        with torch.no_grad():  # the other positions have only decayed
            model.wpe.weight[seen:] = first_positions()[seen:].to(device)
    with tqdm(total=stage.steps, initial=step, desc="training", unit=" steps", smoothing=0.05) as bar:
        while step < stage.steps:
            rng = random.Random(f"stage {number}, step {step}")
            rows = write_rows(source, tokenizer, CHUNK * batch_size, stage.length, rng.random())
            last = N_CTX - stage.length if stage.anywhere else 0
            first = torch.tensor([[rng.randint(0, last)] for _ in rows[0]])  # [CHUNK * batch_size, 1]
            batches = list(zip(*(part.split(batch_size) for part in (*rows, first))))
            for batch in batches[: stage.steps - step]:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, stage)
                with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
                    loss = row_loss(model, *(part.to(device) for part in batch))
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss.item():.3f}")
            bar.write(f"step {step:,}: held-out loss {held_out_loss(model, *held_out):.3f} a token, "
                      f"{(time.monotonic() - started) / 60:.0f} minutes")
            with write_aside(path) as aside:
                torch.save({"stage": number, "step": step, "seconds": time.monotonic() - started,
                            "model": model.state_dict(), "optimizer": optimizer.state_dict()}, aside)


def main():
    parser = argparse.ArgumentParser(description="Pre-trains a small base model on tables and sentences.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds sgd.jsonl.gz and rnnlg.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="where the model is written; a run that was stopped goes on from there")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"),
                        help="bfloat16 (autocast) where the machine multiplies it fast (default: %(default)s)")
    args = parser.parse_args()
    device = pick_device(args.device)
    torch.manual_seed(0)
    source = read_source(args.data)
    print(f"{sum(map(len, source.patterns.values())):,} sentences with holes", flush=True)
    if not (args.out / "merges.txt").exists():
        train_vocabulary(source, N_VOCAB, args.out)
    tokenizer = load_tokenizer(args.out)
    model, path, state = first_model().to(device), args.out / "training.pt", None
    if path.exists():
        state = torch.load(path, device, weights_only=True)
        model.load_state_dict(state["model"])
    for number in range(state["stage"] if state else 0, len(STAGES)):
        train(number, model, source, tokenizer, args.dtype, path, state)
        state = None
    save_model(model, args.out, args.out, dtype=torch.float16)
    path.unlink()


if __name__ == "__main__":
    run_command(main)
