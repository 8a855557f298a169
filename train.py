"""Trains a prefix, or all of GPT-2, on E2E; describes the test tables with beam search; scores: one row of Table 1.

    python train.py --mode prefix           the paper's run: GPT-2 Medium, 5 epochs, batches of 10
    python train.py --mode finetune         the same with all weights trained
    python train.py --mode prefix --demo    the embedded base and sample: minutes on a laptop, no network
"""

import argparse
import json
import platform
import resource
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import tiktoken
import torch
import torch.nn.functional as F
from tqdm import tqdm

import compare
import metrics
from beam import DECODER, add_decoder_arguments, banned_tokens, beam_search
from common import InputError, run_command, sha256, write_aside
from e2e_data import (NO_LOSS, data_file, encode_example, encode_table, find_data, group_by_table, is_known, make_batch,
                      read_split, shuffled_batches)
from gpt2 import GPT2, OPENAI_FOLDERS, load_model, load_tokenizer, model_folder, pick_device, read_json, save_model
from prefix import FORMS, HIDDEN, count, load_prefix, make_prefix, save_prefix

PUBLISHED = {  # GPT-2 Medium on E2E: Li & Liang (2021), Table 1, and a later re-implementation
    "paper, prefix-tuning": "69.7 8.81 46.1 71.4 2.49",
    "paper, fine-tuning": "68.2 8.62 46.2 71.0 2.47",
    "re-implementation, prefix-tuning": "68.8 8.80 45.7 71.3 2.41",
    "re-implementation, fine-tuning": "68.8 8.68 45.8 71.2 2.45",
}
LEARNING_RATE = {"network": 8e-5, "per-layer": 8e-5, "direct": 8e-5, "finetune": 5e-5}  # the paper's
TINY_LEARNING_RATE = {"network": 3e-3, "per-layer": 3e-3, "direct": 0.1, "finetune": 1e-3}  # a small base wants more
DEMO = "--model tiny --data sample --epochs 5 --prefix-length 50 --prefix-form direct --out runs/demo"
LOG_EVERY = 10  # steps


@dataclass
class Run:
    """What describes a table: a GPT-2, the past in front of it (a prefix) or None, and how both read text."""

    settings: dict
    tokenizer: tiktoken.Encoding
    model: GPT2
    past: list | None


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def example_loss(model, past, tokens, targets):
    """The mean cross-entropy over a batch's tokens that carry loss (Li & Liang 2021, equation 2).

    tokens, targets: int [B, T] as `make_batch` gives them; past as `GPT2.forward` takes it.
    """
    counted = targets != NO_LOSS  # [B, T]
    real = counted.flip(1).cumsum(1).flip(1) > 0  # [B, T]: behind the last loss of a row is only padding
    features, _ = model.features(tokens, past, real=real, wanted=counted)  # [M, n_embd]
    logits = model.logits(features)  # [M, n_vocab]: only where there is loss, about half of the tokens
    return F.cross_entropy(logits, targets[counted])


def make_optimizer(module, lr):
    """AdamW as Li & Liang use it, without weight decay; fused: one pass over all the numbers."""
    return torch.optim.AdamW(module.parameters(), lr=lr, weight_decay=0.0, fused=True)


def train(settings, model, prefix, encoded, validation, folder):
    """The training loop. Trains `prefix` or, where that is None, the model; returns what folder/log.jsonl holds.

    After each epoch the validation loss is measured, and what is needed to go on is written to folder/training.pt;
    where that lies already, training goes on from there.
    """
    device = model.wte.weight.device
    trained = model if prefix is None else prefix
    model.requires_grad_(prefix is None)  # gradients pass through frozen weights, but are not computed for them
    optimizer = make_optimizer(trained, settings["lr"])
    steps_per_epoch = -(-len(encoded) // settings["batch_size"])
    steps = min(steps_per_epoch * settings["epochs"], settings["max_steps"] or sys.maxsize)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)  # linear, down to 0
    step, log = 0, []
    if (folder / "training.pt").exists():
        state = torch.load(folder / "training.pt", device, weights_only=True)
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, log = state["step"], state["log"]
        print(f"Going on from step {step:,} of {steps:,}.")
    with write_aside(folder / "log.jsonl") as path:  # what was logged after the last finished epoch happens anew
        path.write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")

    def write_log(**entry):
        log.append(entry)
        with open(folder / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    trained.train()
    with tqdm(total=steps, initial=step, desc="training", unit=" steps") as bar:
        while step < steps:
            epoch = step // steps_per_epoch
            losses, seen, started = [], 0, time.monotonic()  # since the last line of the log
            batches = shuffled_batches(encoded, settings["batch_size"], settings["seed"], epoch)
            for batch in batches[: steps - step]:
                tokens, targets = make_batch(batch, device)
                with torch.autocast(device.type, torch.bfloat16, enabled=settings["dtype"] == "bfloat16"):
                    loss = example_loss(model, prefix and prefix(), tokens, targets)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(trained.parameters(), settings["clip"])
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
                losses.append(loss.detach())  # on the device: reading it each step would make the device wait
                seen += sum(len(prompt) + len(sentence) for prompt, sentence in batch)
                if step % LOG_EVERY == 0 or step % steps_per_epoch == 0 or step == steps:
                    loss, seconds = torch.stack(losses).mean().item(), time.monotonic() - started
                    write_log(step=step, epoch=epoch + 1, loss=loss, lr=schedule.get_last_lr()[0], steps=len(losses),
                              tokens=seen, seconds=seconds)
                    bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.3f}, {seen / seconds:,.0f} tokens/s")
                    losses, seen, started = [], 0, time.monotonic()
            loss = validation_loss(settings, model, prefix, validation)
            write_log(step=step, epoch=epoch + 1, validation_loss=loss)
            bar.write(f"epoch {epoch + 1}: validation loss {loss:.4f} a token", file=sys.stderr)
            with write_aside(folder / "training.pt") as path:
                torch.save({"trained": trained.state_dict(), "optimizer": optimizer.state_dict(),
                            "schedule": schedule.state_dict(), "step": step, "log": log}, path)
    trained.eval()
    return log


@torch.no_grad()
def validation_loss(settings, model, prefix, encoded):
    """The mean loss a token over all examples."""
    device = model.wte.weight.device
    total = number = 0
    for batch in batches_by_length(encoded, 64):
        tokens, targets = make_batch(batch, device)
        n = sum(len(sentence) for _, sentence in batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["dtype"] == "bfloat16"):
            total += n * example_loss(model, prefix and prefix(), tokens, targets).item()
        number += n
    return total / number


def batches_by_length(encoded, batch_size):
    """Examples in batches of similar lengths, so that little is padding."""
    encoded = sorted(encoded, key=lambda example: len(example[0]) + len(example[1]))
    return [encoded[at : at + batch_size] for at in range(0, len(encoded), batch_size)]


# ---------------------------------------------------------------------------------------------------------------------
# Describing and scoring
# ---------------------------------------------------------------------------------------------------------------------


def describe(run, tables, decoder, batch_size, progress=True):
    """The best sentence for each table, in one line."""
    device = run.model.wte.weight.device
    prompts = [encode_table(run.tokenizer, table) for table in tables]
    with torch.autocast(device.type, torch.bfloat16, enabled=run.settings["dtype"] == "bfloat16"):
        hypotheses = beam_search(run.model, prompts, run.past, **decoder, banned=banned_tokens(run.tokenizer),
                                 batch_size=batch_size, progress=progress)
    return [" ".join(run.tokenizer.decode(best.tokens).split()) for best, *_ in hypotheses]


def score_test_set(run, data, decoder, batch_size, out, costs=None):
    """Describes each distinct table of a test set once, scores, prints; writes outputs, references, scores to `out`."""
    test_file = data_file(find_data(data), "test")
    groups = group_by_table(read_split(test_file.parent, "test"))
    tables, references = list(groups), list(groups.values())
    outputs = describe(run, tables, decoder, batch_size)
    scores = metrics.evaluate(references, outputs)
    if out is not None:
        signature = {
            "data": str(data), "test_sha256": sha256(test_file), "model": run.settings["model"],
            "mode": run.settings["mode"], "seed": run.settings["seed"], "decoder": decoder,
            "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "tiktoken")},
        }
        write_text(out, "outputs.txt", "".join(output + "\n" for output in outputs))
        write_text(out, "references.txt", "\n".join("".join(line + "\n" for line in group) for group in references))
        write_json(out, "scores.json", scores | {"signature": signature, "costs": costs})
    for i in range(0, len(tables), -(-len(tables) // 4)):  # a few, spread over the test set
        print(f"\ntable      {tables[i]}\nmodel      {outputs[i]}\nreference  {references[i][0]}")
    rows = [(f"{run.settings['mode']}, {run.settings['model']}, {data}", scores)]
    if is_known(test_file):
        rows += [(name, dict(zip(metrics.METRICS, row.split()))) for name, row in PUBLISHED.items()]
    print("\n" + metrics.format_table(rows))
    if scores["METEOR"] is None:
        print(metrics.meteor.HOW_TO_GET)
    if not is_known(test_file):
        print(f"Published scores are those of src1_test.txt; scores on {data} cannot be compared with them.")


def load_run(source, device="auto"):
    """The model and prefix that train.py wrote to the folder `source`, or a bare model by its name or folder.

    Raises InputError where the folder holds neither, or its training has not ended.
    """
    folder, base = model_folder(source), source
    if not (folder / "run.json").exists() and any((folder / name).exists() for name in ("config.json", "hparams.json")):
        settings = {"mode": "untrained", "model": str(source), "seed": None, "dtype": "float32"}
    else:
        settings = read_json(folder / "run.json")
        weights = "adapter_model.safetensors" if settings["mode"] == "prefix" else "model.safetensors"
        if not (folder / weights).exists():
            raise InputError(f"{folder} has no {weights}: its training has not ended; go on with train.py --resume")
        if settings["mode"] == "prefix":
            base = settings["model"]
    model, past = load_model(base, pick_device(device)), None
    if settings["mode"] == "prefix":
        prefix = load_prefix(folder).to(model.wte.weight.device)
        if any(getattr(prefix.config, name) != getattr(model.config, name) for name in ("n_layer", "n_head", "n_embd")):
            raise InputError(f"{folder} holds a prefix for another shape of GPT-2 than {base}")
        past = prefix()
    return Run(settings, load_tokenizer(base), model, past)


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Trains a prefix or all of GPT-2 to describe tables, then describes the test tables and scores "
        "them. Without other arguments it is the run of Li & Liang (2021): GPT-2 Medium on E2E.",
        epilog="A run writes its folder: run.json (settings), log.jsonl, the weights (a PEFT adapter or a Hugging Face "
        "folder), training.pt (to go on), outputs.txt, references.txt, scores.json, loss.png.",
    )
    parser.add_argument("--mode", required=True, choices=("prefix", "finetune"), help="what is trained")
    parser.add_argument("--demo", action="store_true", help=f"other defaults: {DEMO}")
    parser.add_argument("--model", default="gpt2-medium", metavar="NAME|DIR", help="the base: tiny, gpt2, gpt2-medium, "
                        "gpt2-large, gpt2-xl (downloaded on first use) or a folder (default: %(default)s)")
    parser.add_argument("--data", default="e2e", metavar="e2e|sample|DIR",
                        help="e2e (downloaded on first use), sample or a folder (default: %(default)s)")
    parser.add_argument("--out", metavar="DIR", help="the run's folder (default: runs/MODE-MODEL-DATA)")
    parser.add_argument("--epochs", type=int, default=5, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=10, metavar="N",
                        help="examples a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, metavar="RATE", help="AdamW's learning rate, which falls linearly to 0 "
                        f"(default: {LEARNING_RATE['network']} prefix, {LEARNING_RATE['finetune']} finetune, as in the "
                        f"paper; with tiny {TINY_LEARNING_RATE['network']} prefix, {TINY_LEARNING_RATE['direct']} "
                        f"direct prefix, {TINY_LEARNING_RATE['finetune']} finetune)")
    parser.add_argument("--prefix-length", type=int, nargs="+", default=[5], metavar="P",
                        help="one or several: a run each, and a figure of score against length (default: 5)")
    parser.add_argument("--prefix-form", default="network", choices=FORMS, help="; ".join(
        f"{name}: {text}" for name, text in FORMS.items()) + " (default: %(default)s)")
    parser.add_argument("--prefix-hidden", type=int, metavar="N",
                        help="width of the networks that make the prefix (default: 512, per-layer 800)")
    parser.add_argument("--prefix-words", metavar="TEXT", help="the prefix starts from what the model makes of this "
                        "text, repeated to the prefix's length; it may hold <|endoftext|> (default: random numbers)")
    parser.add_argument("--clip", type=float, default=1.0, metavar="NORM",
                        help="the most that the gradient's norm may be (default: %(default)s)")
    parser.add_argument("--max-steps", type=int, metavar="N",
                        help="stop after so many steps; the learning rate falls to 0 by then")
    parser.add_argument("--seed", type=int, nargs="+", default=[0], metavar="N",
                        help="one or several: a run each, and their mean and spread (default: 0)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"),
                        help="bfloat16 (autocast) is for GPUs (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch of the same command")
    add_decoder_arguments(parser)
    given = sys.argv[1:]
    args = parser.parse_args([*DEMO.split(), *given] if "--demo" in given else given)  # what stands last wins
    for name in ("epochs", "batch_size", "prefix_hidden", "max_steps", "lr", "clip", "num_beams", "max_new_tokens",
                 "decode_batch_size", "prefix_length"):
        values = getattr(args, name) if name == "prefix_length" else [getattr(args, name)]
        if any(value is not None and not value > 0 for value in values):
            raise InputError(f"--{name.replace('_', '-')} must be above 0, but is {' '.join(map(str, values))}")
    if args.mode == "finetune" and (options := [option for option in given if option.startswith("--prefix-")]):
        raise InputError(f"{', '.join(options)}: fine-tuning has no prefix")
    if args.prefix_form == "direct" and args.prefix_hidden:
        raise InputError("--prefix-hidden: a direct prefix has no network")
    args.prefix_hidden = args.prefix_hidden or HIDDEN.get(args.prefix_form)
    if args.lr is None:
        rates = TINY_LEARNING_RATE if args.model == "tiny" else LEARNING_RATE
        args.lr = rates[args.prefix_form if args.mode == "prefix" else "finetune"]
    return args


def single_runs(args):
    """`args` for each single run that is asked for: one for each length and seed, in a folder of its own."""
    out = Path(args.out or f"runs/{args.mode}-{Path(args.model).name}-{Path(args.data).name}")
    runs = []
    for length in args.prefix_length:
        for seed in args.seed:
            name = f"length-{length}-seed-{seed}" if args.mode == "prefix" else f"seed-{seed}"
            runs.append(argparse.Namespace(**vars(args) | {"prefix_length": length, "seed": seed, "out": out / name}))
    if len(runs) == 1:
        runs[0].out = out
    return runs


def prepare(run):
    """The settings of a single run. Raises InputError where its folder holds one already that it cannot go on with."""
    names = ("mode", "model", "data", "epochs", "lr", "batch_size", "prefix_length", "prefix_form", "prefix_hidden",
             "prefix_words", "clip", "max_steps", "seed", "dtype", *DECODER)
    settings = {name: getattr(run, name) for name in names}
    if (source := Path(run.model)).is_dir():
        settings["model"] = str(source.resolve())  # so that the run finds its base from everywhere
    if (run.out / "run.json").exists():
        if not run.resume:
            raise InputError(f"{run.out} already holds a run; give another --out, or --resume to go on with it")
        before = read_json(run.out / "run.json")
        for name in names:
            if settings[name] != before.get(name):
                raise InputError(f"{run.out}/run.json was started with {name} {before.get(name)!r}, not "
                                 f"{settings[name]!r}; --resume needs the same settings")
    return settings


def peak_memory(device):
    """The most memory held so far, in bytes: the GPU's, or on a CPU the whole process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_text(folder, name, text):
    with write_aside(Path(folder) / name) as path:
        path.write_text(text, encoding="utf-8")


def write_json(folder, name, value):
    write_text(folder, name, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def train_and_score(args, settings):
    """A single run, from the weights to its row of Table 1."""
    folder = args.out
    device = pick_device(args.device)
    data_folder = find_data(args.data)
    tokenizer, model = load_tokenizer(args.model), load_model(args.model, device)
    examples = {split: read_split(data_folder, split) for split in ("train", "valid", "test")}
    encoded = {split: [encode_example(tokenizer, *example) for example in examples[split]] for split in examples}
    past_length = args.prefix_length if args.mode == "prefix" else 0
    longest = max(max(len(prompt) + len(sentence), len(prompt) + args.max_new_tokens)
                  for split in encoded.values() for prompt, sentence in split)
    if past_length + longest > model.config.n_ctx:
        raise InputError(f"{data_folder} and --max-new-tokens {args.max_new_tokens} need {longest} positions, the "
                         f"prefix {past_length}: more than the {model.config.n_ctx} that {args.model} has")
    if tokenizer.eot_token != model.config.eos_token:
        raise InputError(f"{args.model}: <|endoftext|> is {tokenizer.eot_token} for the tokenizer, but "
                         f"{model.config.eos_token} for the model")
    for split in examples:
        if not is_known(path := data_file(data_folder, split)):
            print(f"{path} is not a file that published results were measured on.")

    write_json(folder, "run.json", settings)
    torch.manual_seed(args.seed)
    prefix = None
    if args.mode == "prefix":
        words = tokenizer.encode(args.prefix_words, allowed_special="all") if args.prefix_words else None
        prefix = make_prefix(args.prefix_form, model, args.prefix_length, args.prefix_hidden, words).to(device)
    size = count(model)
    trained, kept = (count(prefix), prefix.numbers().numel()) if prefix else (size, size)
    print(f"{args.mode}: {args.model} of {size:,} numbers on {device}; trained {trained:,}, kept {kept:,} "
          f"({kept / size:.2%}); {len(encoded['train']):,} examples", flush=True)
    log = train(settings, model, prefix, encoded["train"], encoded["valid"], folder)
    compare.draw_losses({f"{args.mode}, {args.model}, {args.data}": [log]}, folder / "loss.png")
    if prefix:
        base = args.model if args.model in OPENAI_FOLDERS else model_folder(args.model).resolve()
        save_prefix(prefix, folder, base)
    else:
        save_model(model, folder, args.model)

    steps = [entry for entry in log if "loss" in entry]
    seconds = sum(entry["seconds"] for entry in steps)
    costs = {"trained": trained, "kept": kept, "seconds_per_step": seconds / sum(entry["steps"] for entry in steps),
             "tokens_per_second": sum(entry["tokens"] for entry in steps) / seconds, "peak_memory": peak_memory(device)}
    print(f"trained in {seconds / 60:.1f} minutes, {costs['seconds_per_step']:.3f} seconds a step, "
          f"{costs['tokens_per_second']:,.0f} tokens a second; peak memory {costs['peak_memory'] / 2**30:.2f} GiB")
    del model, prefix
    run = load_run(folder, args.device)  # what is scored is what was saved
    score_test_set(run, args.data, {name: settings[name] for name in DECODER}, args.decode_batch_size, folder, costs)
    print(f"\nAll of it lies in {folder}/ (loss.png shows the training). Describe another table:\n"
          f'  python beam.py --run {folder} "{examples["test"][0][0]}"')


def main():
    args = parse_arguments()
    runs = single_runs(args)
    if args.resume and not any((run.out / "run.json").exists() for run in runs):
        raise InputError(f"{runs[0].out} holds no run to go on with")
    settings = [prepare(run) for run in runs]  # a mistake in the last one shows at once
    for run, its_settings in zip(runs, settings):
        if len(runs) > 1:
            print(f"\n--- {run.out}", flush=True)
        if len(runs) == 1 or not (run.out / "scores.json").exists():  # of several, the finished ones are left alone
            train_and_score(run, its_settings)
    if len(runs) > 1:
        compare.compare([run.out for run in runs], runs[0].out.parent)


if __name__ == "__main__":
    run_command(main)
