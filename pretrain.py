"""Pre-trains the small base model that ships as models/tiny: its vocabulary, then its weights, in two stages.

GPT-2 was trained on one long stream of documents, cut into rows; so is this model, on (table, sentence) pairs in the
form of E2E's examples. The second stage makes it a base that a prefix can steer: half of the names are made up, so that
they must be copied from the table and cannot be remembered; rows begin at any position, as they do behind a prefix of
any length; and there is loss on the sentences alone, as later in prefix-tuning.

    python pretrain.py --data DIR --out models/stage1          DIR holds sgd.jsonl.gz and rnnlg.jsonl.gz
    python pretrain.py --data DIR --out models/tiny --start models/stage1
"""

import argparse
import gzip
import json
import math
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from tqdm import tqdm

from common import InputError, run_command, write_aside
from e2e_data import NO_LOSS, tokenise_text, tokenise_value
from gpt2 import GPT2, GPT2Config, load_model, load_tokenizer, pick_device, save_model

N_VOCAB, N_CTX = 4096, 512
TOKENS_PER_STEP = 2048
RUN = 8  # documents of one domain and speaker that follow each other
HELD_OUT = 80  # rows that are not trained on

# ---------------------------------------------------------------------------------------------------------------------
# Documents
# ---------------------------------------------------------------------------------------------------------------------


def read_documents(folder, made_up, seed):
    """The documents of the stream, as (table, sentence) in the order in which they are read."""
    rng = random.Random(seed)
    kinds = {}
    for name in ("sgd", "rnnlg"):
        for row in read_rows(folder / f"{name}.jsonl.gz"):
            values = [value.lower() for slot, value in row["table"] if slot not in ("act", "intent")]
            if any(value in row["text"].lower() for value in values):  # else it teaches nothing about tables
                kinds.setdefault((row["domain"], row["speaker"]), []).append(row)
    texts = " ".join(row["text"] for rows in kinds.values() for row in rows)
    words = sorted(set(re.findall(r"\b[a-z]{3,}\b", texts)))
    runs = []
    for rows in kinds.values():
        rng.shuffle(rows)
        runs += [rows[at : at + RUN] for at in range(0, len(rows), RUN)]
    rng.shuffle(runs)
    documents = []
    for rows in runs:
        tokenised = rng.random() < 0.5  # half of the runs in the style of the src1 files
        for row in rows:
            slots, text = make_up_names(row, words, rng) if made_up else (row["table"], row["text"])
            table = " | ".join(f"{slot} : {tokenise_value(value)}" for slot, value in slots)
            text = re.sub(r" -s\b", "s", " ".join(text.split()))  # RNNLG writes plurals as "laptop -s"
            documents.append((table, tokenise_text(text) if tokenised else text))
    return documents


def read_rows(path):
    if not path.exists():
        raise InputError(f"{path} is missing; --data must name the folder of sgd.jsonl.gz and rnnlg.jsonl.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def make_up_names(row, words, rng):
    """The slots and the text of a row; half of the names that the text says are others now, in both: random words."""
    slots, text = [], row["text"]
    for slot, value in row["table"]:
        is_name = value[:1].isupper() or slot.endswith("name")
        if is_name and value in text and rng.random() < 0.5:
            name = " ".join(rng.choice(words).capitalize() for _ in range(rng.randint(1, 3)))
            name = rng.choice(["The ", "", "", ""]) + name
            text, value = text.replace(value, name), name
        if slot.endswith(" name") and rng.random() < 0.5:
            slot = "name"  # "restaurant name", "hotel name", ...
        slots.append((slot, value))
    return slots, text


def train_vocabulary(documents, size, folder):
    """A byte-level BPE of `size` entries, <|endoftext|> the last of them, written as vocab.json and merges.txt."""
    trainer = ByteLevelBPETokenizer()
    trainer.train_from_iterator((" " + part for document in documents for part in document), vocab_size=size - 1,
                                show_progress=False)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.save_model(str(folder))
    path = folder / "vocab.json"
    ids = json.loads(path.read_text(encoding="utf-8"))
    with write_aside(path) as aside:
        aside.write_text(json.dumps(ids | {"<|endoftext|>": size - 1}, ensure_ascii=False), encoding="utf-8")


def encode_stream(tokenizer, documents, length, sentences_only):
    """The stream in rows: tokens int [N, length] and targets int [N, length], NO_LOSS where there shall be none."""
    tokens, counted = [], []
    for table, sentence in tqdm(documents, desc="tokenising", unit=" documents"):
        for part, has_loss in ((table, not sentences_only), (sentence, True)):
            encoded = tokenizer.encode_ordinary(" " + part) + [tokenizer.eot_token]
            tokens += encoded
            counted += [has_loss] * len(encoded)
    n = (len(tokens) - 1) // length * length
    targets = torch.tensor(tokens[1 : n + 1]).masked_fill(~torch.tensor(counted[1 : n + 1]), NO_LOSS)
    return torch.tensor(tokens[:n]).view(-1, length), targets.view(-1, length)


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def learning_rate(step, steps, peak):
    """100 steps of warm-up, then a cosine down to 0."""
    return peak * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))


def stream_loss(model, tokens, targets, first):
    """The mean loss a token of rows whose first tokens stand at the positions `first` int [B, 1]."""
    positions = first + torch.arange(tokens.shape[1], device=tokens.device)  # [B, T]
    counted = targets != NO_LOSS
    features, _ = model.features(tokens, positions=positions, wanted=counted)  # [M, n_embd]
    return F.cross_entropy(model.logits(features), targets[counted])


@torch.no_grad()
def held_out_loss(model, tokens, targets):
    first = torch.zeros(1, 1, dtype=torch.long, device=tokens.device)
    losses = [stream_loss(model, *rows, first).item() for rows in zip(tokens.split(10), targets.split(10))]
    return sum(losses) / len(losses)


def main():
    parser = argparse.ArgumentParser(description="Pre-trains a small base model on (table, sentence) pairs.")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds sgd.jsonl.gz and rnnlg.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="where the model is written; a stage that was stopped goes on from there")
    parser.add_argument("--start", type=Path, metavar="DIR", help="the second stage, from the model of the first")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: 1800, second stage 1500)")
    parser.add_argument("--lr", type=float, help="peak learning rate (default: 2e-3, second stage 1e-3)")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, ...")
    args = parser.parse_args()
    second = args.start is not None
    steps, peak = args.steps or (1500 if second else 1800), args.lr or (1e-3 if second else 2e-3)
    length = N_CTX // 2 if second else N_CTX  # of a row; the shorter ones begin at any position that leaves them room
    batch_size = TOKENS_PER_STEP // length
    device = pick_device(args.device)
    torch.manual_seed(args.seed)

    documents = read_documents(args.data, made_up=second, seed=args.seed + second)
    if not second and not (args.out / "merges.txt").exists():
        train_vocabulary(documents, N_VOCAB, args.out)
    vocabulary = args.start or args.out
    tokens, targets = encode_stream(load_tokenizer(vocabulary), documents, length, sentences_only=second)
    order = torch.randperm(len(tokens))
    held_out = [rows[order[:HELD_OUT]].to(device) for rows in (tokens, targets)]
    tokens, targets = tokens[order[HELD_OUT:]], targets[order[HELD_OUT:]]
    print(f"{len(documents):,} documents, {tokens.numel():,} tokens, {(targets != NO_LOSS).float().mean():.0%} with "
          f"loss; {steps:,} steps are {steps * batch_size / len(tokens):.2f} epochs", flush=True)

    if second:
        model = load_model(args.start, device).train()
    else:
        model = GPT2(GPT2Config(N_VOCAB, N_CTX, n_embd=256, n_head=4, n_layer=6)).to(device)
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95))
    state_path, step, seconds = args.out / "training.pt", 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    started = time.monotonic() - seconds
    with tqdm(total=steps, initial=step, desc="training", unit=" steps", smoothing=0.05) as bar:
        while step < steps:
            rows = torch.arange(step * batch_size, (step + 1) * batch_size) % len(tokens)
            first = torch.randint(N_CTX - length + 1, (batch_size, 1)).to(device)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak)
            loss = stream_loss(model, tokens[rows].to(device), targets[rows].to(device), first)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if step % 100 == 0 or step == steps:
                bar.write(f"step {step:,}: held-out loss {held_out_loss(model, *held_out):.3f} a token, "
                          f"{(time.monotonic() - started) / 60:.0f} minutes")
                with write_aside(state_path) as aside:
                    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
                                "seconds": time.monotonic() - started}, aside)
    save_model(model, args.out, vocabulary, dtype=torch.float16)
    state_path.unlink()


if __name__ == "__main__":
    run_command(main)
