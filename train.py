"""Trains a prefix, or all of GPT-2, then describes and scores the test tables: a row of Table 1.

    python train.py --mode prefix           the paper's run: GPT-2 Medium, 5 epochs, batches of 10
    python train.py --mode finetune         the same with all weights trained
    python train.py --mode prefix --demo    the embedded base and sample: minutes, no network

From a program:
    from train import Settings, train_and_score
    scores = train_and_score(Settings(mode="prefix", model="tiny", data="sample"), "runs/x")
"""

import math
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

import metrics
from beam import find_banned_tokens, check_search
from compare import FIGURES, compare_runs
from describe import load_run, score_test_set
from e2e_data import count_targets, encode_splits, make_batch, shuffled_batches
from gpt2 import load_both, save_model
from prefix import count_parameters, make_prefix, save_prefix
from support.bases import PUBLISHED, model_folder
from support.commands import InputError, command_line, run_command
from support.devices import autocast, pick_device, reset_peak_memory
from support.drawing import draw_losses, load_matplotlib
from support.processes import add_up, join, rank, wait_for_all, world_size
from support.record import Record, best_epoch, format_costs_line, costs_of_training
from support.run_folder import (check_folder, check_parent, claim, fingerprints, is_finished,
                                open_run)
from support.settings import DECODER, Settings, read_arguments, settle
from support.speed import fast_products, products_library, packed_logits


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def batch_loss(model, prefix, batch):
    """The mean cross-entropy over the tokens with loss (equation 2 of the paper, which sums)."""
    past = None if prefix is None else prefix()
    # The same as model(batch.tokens, past).flatten(0, 1)[batch.loss_indices]: [M, n_vocab].
    logits = packed_logits(model, batch.tokens, batch.token_indices, batch.loss_indices, past)
    return F.cross_entropy(logits, batch.targets)


def make_optimizer(trained, lr, n_steps, warmup_steps=0):
    """(optimizer, schedule): AdamW as Li & Liang use it, with a learning rate that rises for
    `warmup_steps` and then decays linearly to 0.

    There is no weight decay, because 0 is no better value for a key than any other. fused: one pass
    over all parameters.
    """
    def factor(step):
        if step < warmup_steps:
            return step / warmup_steps
        return 1 - (step - warmup_steps) / max(1, n_steps - warmup_steps)

    optimizer = torch.optim.AdamW(trained.parameters(), lr=lr, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def train_step(model, prefix, batch, optimizer, schedule, clip=1.0, dtype="float32", weight=1.0):
    """One step of training, of `prefix` or, where that is None, of the model. Returns the loss.

    weight     the share of the batch's loss tokens that this process has: 1 for a single process
    The loss stays on the device, because reading it at each step would make the device wait.
    """
    with autocast(batch.tokens.device, dtype), fast_products():
        loss = weight * batch_loss(model, prefix, batch)
    optimizer.zero_grad()  # otherwise gradients would be added to those of the last step
    loss.backward()  # through the frozen layers too, which is how gradients reach the prefix
    trained = model if prefix is None else prefix
    parameters = list(trained.parameters())
    add_up(parameter.grad for parameter in parameters)  # over processes
    torch.nn.utils.clip_grad_norm_(parameters, clip)  # one large gradient must not undo the rest
    optimizer.step()  # AdamW moves each parameter by about the learning rate
    schedule.step()  # the learning rate decays a little
    return loss.detach()


def train(settings, model, prefix, encoded, validation, record):
    """The training loop, for `prefix` or, where that is None, for the model.

    encoded, validation   examples as `encode_example` gives them
    record                a Record, which continues where it was stopped; its log is returned
    """
    trained = model if prefix is None else prefix
    # Gradients flow through frozen weights to the prefix. But none is computed for these weights,
    # and the optimizer does not have them.
    model.requires_grad_(prefix is None)
    trained.train()
    steps_per_epoch = math.ceil(len(encoded) / settings.batch_size)
    last_step = min(steps_per_epoch * settings.epochs, settings.max_steps or sys.maxsize)
    if settings.warmup_steps >= last_step:
        print(f"note: the learning rate rises for {settings.warmup_steps:,} steps, and there are "
              f"{last_step:,}; it never reaches {settings.lr}")
    optimizer, schedule = make_optimizer(trained, settings.lr, last_step, settings.warmup_steps)
    parts = {"trained": trained, "optimizer": optimizer, "schedule": schedule}
    with record.begin(parts, steps_per_epoch, last_step, model.device):
        while record.step < last_step:
            epoch, at = divmod(record.step, steps_per_epoch)  # at > 0: it was stopped in an epoch
            batches = shuffled_batches(encoded, settings.batch_size, settings.seed, epoch)
            for examples in batches[at : at + last_step - record.step]:
                batch, weight = share_of_batch(examples, model.device)
                loss = train_step(model, prefix, batch, optimizer, schedule, settings.clip,
                                  settings.dtype, weight)
                record.add(loss, sum(len(prompt) + len(answer) for prompt, answer in examples))
            held_out = validation_loss(model, prefix, validation, settings.dtype,
                                       batch_size=min(64, 4 * settings.batch_size))
            record.end_epoch(held_out, settings.keep)
    trained.eval()
    return record.log


def share_of_batch(examples, device):
    """(this process's examples as a Batch, their share of the tokens with loss)."""
    share = examples[rank() :: world_size()]
    weight = count_targets(share) / count_targets(examples)  # of an empty share: 0
    return make_batch(share or examples, device), weight


@torch.no_grad()
def validation_loss(model, prefix, encoded, dtype="float32", batch_size=64):
    """The mean loss per token over all examples; None if there are none."""
    encoded = sorted(encoded, key=lambda example: len(example[0]) + len(example[1]))
    total = 0
    for at in range(0, len(encoded), batch_size):
        batch = make_batch(encoded[at : at + batch_size], model.device)
        with autocast(model.device, dtype), fast_products():
            total += len(batch.targets) * batch_loss(model, prefix, batch).item()
    return total / count_targets(encoded) if encoded else None


# --------------------------------------------------------------------------------------------------
# A run, from the weights to its row of Table 1
# --------------------------------------------------------------------------------------------------


def train_and_score(settings, folder, device="auto", decode_batch_size=64, resume=False):
    """A run: trains, saves, describes the test tables with what was saved, and scores them.

    settings   Settings; those that are None follow from the others (`settle`)
    folder     where everything is written; with resume, a run that was stopped there continues
    Returns the five scores, None without a test set or where the run is finished already. Raises
    InputError before any work where it cannot be done.
    """
    settings, folder, device = settle(settings), Path(folder), pick_device(device)
    check_folder(folder, asdict(settings), resume)
    if is_finished(folder):
        with claim(folder):  # removes what a kill left
            (folder / "training.pt").unlink(missing_ok=True)
        print(f"{folder} is finished, and is left as it is.")
        return None
    reset_peak_memory(device)
    model, tokenizer = load_both(settings.model, device)
    examples, made_from = encode_splits(settings, model, tokenizer)
    made_from |= fingerprints(model, tokenizer)
    check_possible(settings, model, tokenizer, examples, decode_batch_size)
    wait_for_all()  # no process writes before all have checked
    with open_run(folder, asdict(settings) | made_from, resume) as run:
        torch.manual_seed(settings.seed)
        prefix = make_prefix(settings, model, tokenizer) if settings.mode == "prefix" else None
        costs = count_numbers(settings, model, prefix)
        print(f"{len(examples['train']):,} examples, on {device}, float32 products on a CPU by "
              f"{products_library()}", flush=True)
        save = partial(save_weights, settings, folder, made_from)
        log = train(settings, model, prefix, examples["train"], examples["valid"],
                    Record(folder, run, save))
        if settings.keep == "best":
            print(f"Kept is epoch {best_epoch(log)}, of the lowest validation loss.")
        costs |= costs_of_training(log)
        print(format_costs_line(costs), flush=True)
        if rank() == 0:
            draw_losses({name_of(settings): [log]}, folder / "loss.png")
        del model, prefix  # so that there is room for what is loaded next
        scores = None
        if examples["test"]:
            finished = load_run(folder, device)  # what is scored is what was saved
            decoder = {name: getattr(settings, name) for name in DECODER}
            scores = score_test_set(finished, settings.data, decoder, decode_batch_size, folder,
                                    costs)
    prompt, _ = (examples["test"] or examples["train"])[0]
    again = command_line(["describe.py", str(folder), tokenizer.decode(prompt[:-1]).strip()])
    print(f"\nEverything is in {folder}/ (loss.png shows the training). Describe another table:\n"
          f"  python {again}")
    return scores


def check_possible(settings, model, tokenizer, encoded, decode_batch_size):
    """Raises InputError for what would otherwise fail hours later: a choice without validation
    data, an impossible search, a figure. Says if METEOR will be missing."""
    if decode_batch_size < 1:
        raise InputError(f"--decode-batch-size must be above 0, but is {decode_batch_size}")
    if settings.keep == "best" and not encoded["valid"]:
        raise InputError(f"--keep best: {settings.data} has no validation data to choose by")
    check_search(model, [], [], settings.num_beams, settings.max_new_tokens,
                 settings.length_penalty, find_banned_tokens(model, tokenizer))
    if encoded["test"] and metrics.meteor_data.find() is None:
        print(metrics.meteor.HOW_TO_GET)
    load_matplotlib()


def count_numbers(settings, model, prefix):
    """Prints and returns the numbers of parameters trained and kept."""
    whole = count_parameters(model)
    trained = whole if prefix is None else count_parameters(prefix)
    kept = whole if prefix is None else prefix.key_values().numel()
    print(f"{settings.mode}: {settings.model} of {whole:,} parameters; trained {trained:,}, kept "
          f"{kept:,} ({kept / whole:.2%}); learning rate {settings.lr}")
    return {"trained": trained, "kept": kept}


def name_of(settings):
    """What a run is called in its figure."""
    return f"{settings.mode}, {Path(settings.model).name}, {Path(settings.data).name}"


def save_weights(settings, folder, made_from, trained):
    """Writes what is kept of a run: a PEFT adapter, or the model in Hugging Face's form."""
    if settings.mode == "finetune":
        return save_model(trained, folder, settings.model)
    base = settings.model if settings.model in PUBLISHED else model_folder(settings.model)
    return save_prefix(trained, folder, base, made_from)


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------


def main():
    args, out, runs = read_arguments()
    device = pick_device(args.device)
    runs = {folder: settle(settings) for folder, settings in runs.items()}
    join(device)

    def is_begun():
        return any((folder / "run.json").exists() for folder in runs)

    if args.resume and not is_begun():
        raise InputError(f"{out} holds no run to resume")
    if len(runs) > 1:
        check_parent(out, FIGURES)
    for folder, settings in runs.items():  # a mistake in the last one shows at once
        check_folder(folder, asdict(settings), args.resume)
    try:
        for folder, settings in runs.items():
            if len(runs) > 1:
                print(f"\n--- {folder}", flush=True)
            train_and_score(settings, folder, device, args.decode_batch_size, args.resume)
        if rank() == 0 and len(runs) > 1 and all((folder / "scores.json").exists()
                                                 for folder in runs):
            with claim(out):
                compare_runs(runs, out)
    except KeyboardInterrupt:
        again = command_line(sys.argv + ["--resume"] * (is_begun() and not args.resume))
        raise KeyboardInterrupt(f"; continue with: python {again}") from None


if __name__ == "__main__":
    run_command(main, goes_on=True)
