"""Trains a prefix, or all of GPT-2; describes the test tables; scores them: one row of Table 1.

    python train.py --mode prefix           the paper's run: GPT-2 Medium, 5 epochs, batches of 10
    python train.py --mode finetune         the same with all weights trained
    python train.py --mode prefix --demo    the embedded base and sample: minutes, no network
"""

import argparse
import copy
import math
import re
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torch.nn.functional as F

import metrics
from beam import banned_tokens, check_search
from support.files import (ROOT, InputError, command_line, progress_bar, run_command, seed_number,
                    sha256, write_json)
from compare import check_drawing, compare_runs, draw_losses
from describe import DECODER, add_decoder_arguments, load_run, score_test_set
from e2e_data import (SPLITS, check_length, data_file, encode_example, find_data, make_batch,
                      read_examples, shuffled_batches)
from gpt2 import (GPT2, NAMES, OPENAI_FOLDERS, SIZES, autocast, load_both, load_config,
                  model_folder, pick_device, save_model)
from prefix import FORMS, HIDDEN, Prefix, activations, count_parameters, save_prefix
from support.processes import RANK, WORLD, add_up, join, wait_for_all
from support.run_folder import (Settings, check_folder, claim, fingerprints, is_finished, load_state,
                        save_state, start_log, write_log)

LEARNING_RATE = {"network": 8e-5, "per-layer": 8e-5, "direct": 8e-5,  # the paper's prefix
                 "finetune": 5e-5}  # and its fine-tuning
SMALL = 50_000_000  # parameters; a smaller base wants more:
SMALL_LEARNING_RATE = {"network": 3e-3, "per-layer": 1e-3, "direct": 0.1, "finetune": 1e-3}
DEMO = {  # mode -> its arguments
    "prefix": "--epochs 5 --prefix-length 50 --prefix-form direct --out runs/demo/prefix",
    "finetune": "--epochs 2 --out runs/demo/finetune"}
LOG_EVERY = 10  # steps
SAVE_EVERY = 120  # seconds
WITHOUT = {"valid": "no validation loss is measured", "test": "nothing is described and scored"}


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def batch_loss(model, prefix, batch):
    """The mean cross-entropy over a batch's tokens with loss; the paper's equation 2 is a sum."""
    past = None if prefix is None else prefix()
    logits = model(batch.tokens, past, places=batch.places, wanted=batch.wanted)  # [M, n_vocab]
    return F.cross_entropy(logits, batch.targets)


def make_optimizer(trained, lr, n_steps, warmup_steps=0):
    """(optimizer, schedule): AdamW as Li & Liang use it, and its learning rate, which rises for
    `warmup_steps`, then falls to 0.

    No weight decay: a prefix is no weight of a layer, and 0 is no better value for a key than any
    other. fused: one pass over all parameters.
    """
    def factor(step):
        if step < warmup_steps:
            return step / warmup_steps
        return 1 - (step - warmup_steps) / max(1, n_steps - warmup_steps)

    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_step(model, prefix, batch, optimizer, schedule, clip=1.0, dtype="float32", weight=1.0):
    """One step of training, of `prefix` or, where that is None, of the model. Returns the loss.

    weight     the share of the whole batch's tokens with loss that is in `batch`: 1 unless several
               processes share it
    The loss stays on the device: to read it at each step would make the device wait.
    """
    with autocast(batch.tokens.device, dtype):
        loss = weight * batch_loss(model, prefix, batch)
    optimizer.zero_grad()  # or gradients would be added to those of the last step
    loss.backward()  # through the frozen layers too: what a prefix does, it does through them
    parameters = list((prefix or model).parameters())
    add_up(parameter.grad for parameter in parameters)  # over processes
    torch.nn.utils.clip_grad_norm_(parameters, clip)  # a rare large gradient must not undo the rest
    optimizer.step()  # AdamW moves each parameter by about the learning rate
    schedule.step()  # which falls a little
    return loss.detach()


def train(settings, model, prefix, encoded, validation, folder):
    """The training loop, for `prefix` or, where that is None, for the model.

    Every few minutes, and after each epoch, what is needed to go on is written to
    folder/training.pt; where that lies already, training goes on from there, to the bit as if it
    had not been stopped. Returns what folder/log.jsonl holds.
    """
    device = model.wte.weight.device
    trained = model if prefix is None else prefix
    # A frozen weight still takes part in the computation, and gradients pass through it to the
    # prefix; but none is computed for it, and no optimiser knows it.
    model.requires_grad_(prefix is None)
    trained.train()
    steps_per_epoch = math.ceil(len(encoded) / settings.batch_size)
    last_step = min(steps_per_epoch * settings.epochs, settings.max_steps or sys.maxsize)
    optimizer, schedule = make_optimizer(trained, settings.lr, last_step, settings.warmup_steps)
    parts = {"trained": trained, "optimizer": optimizer, "schedule": schedule}
    if settings.keep == "best":
        parts["best"] = copy.deepcopy(trained)
    step, log = load_state(folder, parts, device)
    start_log(folder, log)
    to_save = save_state(folder, parts, step, log)  # seconds
    if step == 0:  # AdamW's two moments of each parameter come with the first step
        to_save *= 3
    save_every = max(SAVE_EVERY, 50 * to_save)  # at most 2% of the time
    print(f"Step {step:,} of {last_step:,}. What is needed to go on is saved after each epoch and "
          f"every {save_every / 60:.0f} minutes: no more is lost where it stops.", flush=True)
    losses, n_tokens, started = [], 0, time.perf_counter()  # since the last line of the log
    batches, saved = None, time.monotonic()

    with progress_bar(total=last_step, initial=step, desc="training", unit=" steps") as bar:
        while step < last_step:
            epoch, at = divmod(step, steps_per_epoch)
            if batches is None or at == 0:
                batches = shuffled_batches(encoded, settings.batch_size, settings.seed, epoch)
            share = batches[at][RANK::WORLD]
            batch = make_batch(share or batches[at], device)
            weight = count_targets(share) / count_targets(batches[at])  # an empty share: 0
            losses.append(train_step(model, prefix, batch, optimizer, schedule, settings.clip,
                                     settings.dtype, weight))
            step += 1
            bar.update()
            n_tokens += sum(len(prompt) + len(answer) for prompt, answer in batches[at])
            is_end = step % steps_per_epoch == 0 or step == last_step
            if step % LOG_EVERY and not is_end:
                continue

            losses, lr = torch.stack(losses), schedule.get_last_lr()[0]
            add_up([losses])  # each has the part of its process
            check_losses(losses, step, lr, folder)  # waits until the device has done all of it
            loss, seconds = losses.mean().item(), time.perf_counter() - started
            speed = n_tokens / seconds
            write_log(folder, log, step=step, epoch=epoch + 1, loss=loss, lr=lr, steps=len(losses),
                      tokens=n_tokens, seconds=seconds, peak_memory=peak_memory(device))
            bar.set_postfix_str(f"epoch {epoch + 1}, loss {loss:.3f}, {speed:,.0f} tokens/s",
                                refresh=False)
            if is_end and validation:
                unseen = validation_loss(model, prefix, validation, settings.dtype,
                                         batch_size=min(64, 4 * settings.batch_size))
                check_losses(torch.tensor([unseen]), step, lr, folder)
                write_log(folder, log, step=step, epoch=epoch + 1, validation_loss=unseen)
                bar.write(f"epoch {epoch + 1}: validation loss {unseen:.4f} a token")
                if settings.keep == "best" and best_epoch(log) == epoch + 1:
                    parts["best"].load_state_dict(trained.state_dict())
            if is_end or time.monotonic() - saved > save_every:
                save_every = max(SAVE_EVERY, 50 * save_state(folder, parts, step, log))
                saved = time.monotonic()
            losses, n_tokens, started = [], 0, time.perf_counter()
    if settings.keep == "best":
        trained.load_state_dict(parts["best"].state_dict())
        print(f"Kept is epoch {best_epoch(log)}, of the lowest validation loss.")
    trained.eval()
    return log


def count_targets(encoded):
    """How many tokens carry loss in examples as `encode_example` gives them."""
    return sum(len(answer) for _, answer in encoded)


def best_epoch(log):
    """The epoch with the lowest validation loss, of several the first."""
    measured = [entry for entry in log if "validation_loss" in entry]
    return min(measured, key=lambda entry: entry["validation_loss"])["epoch"]


@torch.no_grad()
def validation_loss(model, prefix, encoded, dtype="float32", batch_size=64):
    """The mean loss a token over all examples, in batches of similar lengths."""
    device = model.wte.weight.device
    encoded = sorted(encoded, key=lambda example: len(example[0]) + len(example[1]))
    total = number = 0
    for at in range(0, len(encoded), batch_size):
        batch = make_batch(encoded[at : at + batch_size], device)
        with autocast(device, dtype):
            total += len(batch.targets) * batch_loss(model, prefix, batch).item()
        number += len(batch.targets)
    return total / number


def check_losses(losses, step, lr, folder):
    """Raises InputError where one of the latest losses, up to that of `step`, is not finite."""
    finite = losses.isfinite().tolist()
    if not all(finite):
        first = step - len(finite) + 1 + finite.index(False)
        raise InputError(f"at step {first:,}, at a learning rate of about {lr:.2g}, the loss is no "
                         "finite number any more, and training on would be of no use; start anew "
                         f"with a lower --lr and another --out ({folder}/training.pt holds the "
                         "last good state)")


def reset_peak_memory(device):
    """From here on `peak_memory` counts anew, so that of several runs each has its own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (path := Path("/proc/self/clear_refs")).exists():
        with suppress(OSError):  # where it is not allowed, runs share their peak
            path.write_text("5")


def peak_memory(device):
    """The most memory held since `reset_peak_memory`, in bytes: the GPU's, or the process's.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    path = Path("/proc/self/status")  # Linux
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.exists() else None
    return int(found[1]) * 1024 if found else None


# --------------------------------------------------------------------------------------------------
# A run, from the weights to its row of Table 1
# --------------------------------------------------------------------------------------------------


def train_and_score(settings, folder, device, decode_batch_size, resume):
    """A single run: trains, saves, describes the test tables with what was saved, scores them."""
    reset_peak_memory(device)
    model, tokenizer = load_both(settings.model, device)
    encoded, made_from = read_data(settings, model, tokenizer)
    made_from |= fingerprints(model, tokenizer)
    check_possible(settings, model, tokenizer, encoded)
    if settings.max_examples:  # the first batch of an epoch that comes before the others
        encoded["train"] = shuffled_batches(encoded["train"], settings.max_examples, settings.seed,
                                            epoch=-1)[0]

    with claim(folder) if RANK == 0 else nullcontext():
        if RANK == 0:
            told = asdict(settings) | made_from
            check_folder(folder, told, resume)
            write_json(folder / "run.json", told)
        torch.manual_seed(settings.seed)
        prefix = make_prefix(settings, model, tokenizer) if settings.mode == "prefix" else None
        base_size = count_parameters(model)
        n_trained = count_parameters(prefix or model)
        kept = prefix.key_values().numel() if prefix else base_size
        print(f"{settings.mode}: {settings.model} of {base_size:,} parameters on {device}; trained "
              f"{n_trained:,}, kept {kept:,} ({kept / base_size:.2%}); learning rate "
              f"{settings.lr}; {len(encoded['train']):,} examples", flush=True)
        wait_for_all()
        log = train(settings, model, prefix, encoded["train"], encoded["valid"], folder)
        if prefix and RANK == 0:
            is_published = settings.model in OPENAI_FOLDERS
            base = settings.model if is_published else model_folder(settings.model).resolve()
            save_prefix(prefix, folder, base, made_from)
        elif RANK == 0:
            save_model(model, folder, settings.model)
        wait_for_all()

        costs = {"trained": n_trained, "kept": kept} | costs_of_training(log)
        peak = costs["peak_memory"]
        print(f"trained in {costs['seconds'] / 60:.1f} minutes, {costs['seconds_per_step']:.3f} "
              f"seconds a step, {costs['tokens_per_second']:,.0f} tokens a second; peak memory "
              + (f"{peak / 2**30:.2f} GiB" if peak else "unknown"), flush=True)
        del model, prefix
        if RANK == 0:
            name = f"{settings.mode}, {Path(settings.model).name}, {Path(settings.data).name}"
            draw_losses({name: [log]}, folder / "loss.png")
        if encoded["test"]:
            run = load_run(folder, device)  # what is scored is what was saved
            decoder = {name: getattr(settings, name) for name in DECODER}
            score_test_set(run, settings.data, decoder, decode_batch_size, folder, costs)
    prompt, _ = (encoded["test"] or encoded["train"])[0]
    again = command_line(["describe.py", str(folder), tokenizer.decode(prompt[:-1]).strip()])
    print(f"\nAll of it lies in {folder}/ (loss.png shows the training). Describe another table:\n"
          f"  python {again}")


def read_data(settings, model, tokenizer):
    """({split: its examples, encoded}, {name: SHA-256 of each file}).

    Raises InputError for an example that has no room in the model, naming file and line.
    """
    folder, encoded, made_from = find_data(settings.data), {}, {}
    P = settings.prefix_length if settings.mode == "prefix" else 0
    for split in SPLITS:
        path, encoded[split] = data_file(folder, split), []
        if split in WITHOUT and not path.exists():
            print(f"{path} is missing: {WITHOUT[split]}.")
            made_from[f"{split}_sha256"] = ""
            continue
        for where, example in read_examples(folder, split):
            prompt, answer = encode_example(tokenizer, *example)
            n_new = settings.max_new_tokens if split == "test" else len(answer)
            check_length(where, P, prompt, n_new, model.config.n_ctx, settings.model)
            encoded[split].append((prompt, answer))
        made_from[f"{split}_sha256"] = sha256(path)
    return encoded, made_from


def check_possible(settings, model, tokenizer, encoded):
    """Raises InputError for what would fail hours later: a choice without validation data, an
    impossible search, a figure. Says so where METEOR will be missing."""
    if settings.keep == "best" and not encoded["valid"]:
        raise InputError(f"--keep best: {settings.data} has no validation data to choose by")
    P = settings.prefix_length if settings.mode == "prefix" else 0
    prompts = [prompt for prompt, _ in encoded["test"]]
    check_search(model, prompts, [P] * len(prompts), settings.num_beams, settings.max_new_tokens,
                 settings.length_penalty, banned_tokens(model, tokenizer))
    if prompts and metrics.meteor_data.find() is None:
        print(metrics.meteor.HOW_TO_GET)
    check_drawing()


def make_prefix(settings, model, tokenizer):
    """The prefix that `settings` ask for, at its start: random, or made of words (section 7.4)."""
    start, length = None, settings.prefix_length
    if settings.prefix_words:
        words = tokenizer.encode(settings.prefix_words, allowed_special="all")
        start = activations(model, (words * length)[:length])
    prefix = Prefix(model.config, length, settings.prefix_hidden, settings.prefix_form, start)
    return prefix.to(model.wte.weight.device)


def costs_of_training(log):
    """What a log tells of the costs: seconds, speeds, bytes of memory at the peak."""
    steps = [entry for entry in log if "loss" in entry]
    seconds = sum(entry["seconds"] for entry in steps)
    peaks = [entry["peak_memory"] for entry in steps]
    return {
        "seconds": seconds,
        "seconds_per_step": seconds / sum(entry["steps"] for entry in steps),
        "tokens_per_second": sum(entry["tokens"] for entry in steps) / seconds,
        "peak_memory": None if None in peaks else max(peaks),
    }


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------


def parse_arguments():
    parser = argparse.ArgumentParser(
        allow_abbrev=False,
        description="Trains a prefix or all of GPT-2 to describe tables, then describes the test "
        "tables and scores them. Without other arguments it is the run of Li & Liang (2021): GPT-2 "
        "Medium on E2E.",
        epilog="A run writes its folder: run.json (settings), log.jsonl, the weights (a PEFT "
        "adapter or a Hugging Face folder), training.pt (to go on), outputs.txt, references.txt, "
        "scores.json, loss.png.")
    add = parser.add_argument
    add("--mode", required=True, choices=("prefix", "finetune"), help="what is trained")
    add("--demo", action="store_true", help="other defaults: --model tiny --data sample, "
        + ", ".join(f"{mode} {arguments}" for mode, arguments in DEMO.items()))
    add("--model", default="gpt2-medium", metavar="NAME|DIR", help="the base: tiny, gpt2, "
        "gpt2-medium, gpt2-large, gpt2-xl (downloaded on first use) or a folder (default: "
        "%(default)s)")
    add("--data", default="e2e", metavar="e2e|sample|DIR",
        help="e2e (downloaded on first use), sample or a folder (default: %(default)s)")
    add("--out", metavar="DIR", help="the run's folder (default: runs/MODE-MODEL-DATA)")
    add("--max-examples", type=int, metavar="N",
        help="train on at most so many examples, drawn by the seed (default: all)")
    add("--epochs", type=int, default=5, metavar="N", help="(default: %(default)s)")
    add("--batch-size", type=int, default=10, metavar="N",
        help="examples a step (default: %(default)s)")
    add("--lr", type=float, metavar="RATE", help="AdamW's learning rate, which falls linearly to 0 "
        f"(default: {LEARNING_RATE['network']} prefix, {LEARNING_RATE['finetune']} finetune, as in "
        f"the paper; for a base of fewer than {SMALL // 10**6} million parameters "
        f"{SMALL_LEARNING_RATE['network']} prefix, {SMALL_LEARNING_RATE['per-layer']} with a "
        f"network per layer, {SMALL_LEARNING_RATE['direct']} direct, "
        f"{SMALL_LEARNING_RATE['finetune']} finetune)")
    add("--warmup-steps", type=int, default=0, metavar="N",
        help="steps in which the learning rate rises first (default: %(default)s)")
    add("--keep", choices=("last", "best"), default="last", help="the state after the last epoch, "
        "or after that of the lowest validation loss (default: %(default)s)")
    add("--prefix-length", type=int, nargs="+", default=[5], metavar="P",
        help="one or several: a run each, and a figure of score against length (default: 5)")
    forms = "; ".join(f"{name}: {text}" for name, text in FORMS.items())
    add("--prefix-form", default="network", choices=FORMS, help=f"{forms} (default: %(default)s)")
    add("--prefix-hidden", type=int, metavar="N",
        help="width of the networks that make the prefix (default: 512, per-layer 800)")
    add("--prefix-words", metavar="TEXT", help="the prefix starts from what the model makes of "
        "this text, repeated to the prefix's length; it may hold <|endoftext|> (default: random "
        "numbers)")
    add("--clip", type=float, default=1.0, metavar="NORM",
        help="the most that the gradient's norm may be (default: %(default)s)")
    add("--max-steps", type=int, metavar="N",
        help="stop after so many steps; the learning rate falls to 0 by then")
    add("--seed", type=seed_number, nargs="+", default=[0], metavar="N",
        help="one or several: a run each, and their mean and spread (default: 0)")
    add("--dtype", default="float32", choices=("float32", "bfloat16"),
        help="bfloat16 (autocast) is for GPUs (default: %(default)s)")
    add("--resume", action="store_true",
        help="go on where the same command was stopped; of several runs, with those not finished")
    add_decoder_arguments(parser)
    args = parser.parse_args()
    if args.demo:
        demo = ["--model", "tiny", "--data", "sample", *DEMO[args.mode].split()]
        args = parser.parse_args(demo + sys.argv[1:])  # what stands last wins
    for name in ("epochs", "batch_size", "prefix_hidden", "max_steps", "max_examples", "lr", "clip",
                 "num_beams", "max_new_tokens", "decode_batch_size", "prefix_length"):
        value = getattr(args, name)
        values = value if isinstance(value, list) else [value]
        if any(value is not None and not 0 < value < math.inf for value in values):
            raise InputError(f"--{name.replace('_', '-')} must be above 0 and finite, but is "
                             f"{' '.join(map(str, values))}")
    if args.warmup_steps < 0:
        raise InputError(f"--warmup-steps must be 0 or more, but is {args.warmup_steps}")
    for name in ("seed", "prefix_length"):
        if len(set(values := getattr(args, name))) < len(values):
            raise InputError(f"--{name.replace('_', '-')} {' '.join(map(str, values))}: give each "
                             "number once")
    options = [option for option in sys.argv[1:] if option.startswith("--prefix-")]
    if args.mode == "finetune" and options:
        raise InputError(f"{', '.join(options)}: fine-tuning has no prefix")
    if args.prefix_form == "direct" and args.prefix_hidden:
        raise InputError("--prefix-hidden: a direct prefix has no network")
    args.prefix_hidden = args.prefix_hidden or HIDDEN.get(args.prefix_form)
    if args.model not in NAMES:  # so that the run finds its base and data from everywhere
        args.model = str(Path(args.model).resolve())
    if args.data not in ("e2e", "sample"):
        args.data = str(Path(args.data).resolve())
    if args.lr is None:
        args.lr = default_learning_rate(args)
    return args


def default_learning_rate(args):
    """The learning rate for what `args` train, by the size of the base."""
    with torch.device("meta"):  # shapes without memory
        model = GPT2(SIZES.get(args.model) or load_config(args.model))
    rates = SMALL_LEARNING_RATE if count_parameters(model) < SMALL else LEARNING_RATE
    return rates[args.prefix_form if args.mode == "prefix" else "finetune"]


def single_runs(args):
    """{folder: Settings} of each single run that is asked for: one for each length and seed."""
    name = f"{args.mode}-{Path(args.model).name}-{Path(args.data).name}"
    out = Path(args.out or Path("runs") / name)
    common = {field.name: getattr(args, field.name) for field in fields(Settings)}
    runs = {}
    for length in args.prefix_length:
        for seed in args.seed:
            name = f"length-{length}-seed-{seed}" if args.mode == "prefix" else f"seed-{seed}"
            is_single = len(args.prefix_length) == len(args.seed) == 1
            settings = Settings(**common | {"prefix_length": length, "seed": seed})
            runs[out if is_single else out / name] = settings
    return runs


def main():
    args = parse_arguments()
    device = pick_device(args.device)
    join(device)
    runs = single_runs(args)
    first = next(iter(runs))
    if args.resume and not any((folder / "run.json").exists() for folder in runs):
        raise InputError(f"{first} holds no run to go on with")
    out = (first if len(runs) == 1 else first.parent).resolve()
    if out in (ROOT / "models" / args.model, ROOT / "data" / args.data):  # or absolute paths
        raise InputError(f"{out} holds the base or the data; give another --out")
    for folder, settings in runs.items():  # a mistake in the last one shows at once
        check_folder(folder, asdict(settings), args.resume)
    wait_for_all()
    try:
        for folder, settings in runs.items():
            if len(runs) > 1:
                print(f"\n--- {folder}", flush=True)
            if is_finished(folder):
                with claim(folder) if RANK == 0 else nullcontext():  # removes what a kill left
                    print(f"{folder} is finished, and is left as it is.")
                continue
            train_and_score(settings, folder, device, args.decode_batch_size, args.resume)
        if RANK == 0 and len(runs) > 1 and all((folder / "scores.json").exists()
                                               for folder in runs):
            with claim(out):
                compare_runs(runs, out)
    except KeyboardInterrupt:
        begun = any((folder / "run.json").exists() for folder in runs)
        again = [argument for argument in sys.argv if argument != "--resume"]
        again = command_line([*again, *["--resume"] * begun])
        raise KeyboardInterrupt(f"; go on with: python {again}") from None


if __name__ == "__main__":
    run_command(main)
