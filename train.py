"""Trains a prefix, or all of GPT-2; describes the test tables; scores them: one row of Table 1.

    python train.py --mode prefix           the paper's run: GPT-2 Medium, 5 epochs, batches of 10
    python train.py --mode finetune         the same with all weights trained
    python train.py --mode prefix --demo    the embedded base and sample: minutes, no network

From a program:
    from train import Settings, train_and_score
    scores = train_and_score(Settings(mode="prefix", model="tiny", data="sample"), "runs/x")
"""

import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.nn.functional as F

import metrics
from beam import banned_tokens, check_search
from compare import compare_runs
from describe import load_run, score_test_set
from e2e_data import check_lengths, encode_example, make_batch, read_examples, shuffled_batches
from gpt2 import load_both, save_model
from prefix import HIDDEN, Prefix, activations, count_parameters, save_prefix
from support.bases import NAMES, PUBLISHED, model_folder
from support.commands import InputError, command_line, run_command
from support.devices import autocast, pick_device, reset_peak_memory
from support.drawing import draw_losses, load_matplotlib
from support.files import sha256, write_json
from support.processes import add_up, check_one_folder, join, rank, wait_for_all, world_size
from support.reading import SPLITS, find_data, split_path, unread_files
from support.record import Record, best_epoch, costs_in_words, costs_of_training
from support.run_folder import check_folder, claim, fingerprints, is_finished
from support.settings import DECODER, Settings, default_learning_rate, read_arguments
from support.speed import fast_products, products_library, wanted_logits

WITHOUT = {"valid": "no validation loss is measured", "test": "nothing is described and scored"}


# --------------------------------------------------------------------------------------------------
# Training
# --------------------------------------------------------------------------------------------------


def batch_loss(model, prefix, batch):
    """The mean cross-entropy over a batch's tokens with loss; the paper's equation 2 is a sum."""
    past = None if prefix is None else prefix()
    # The same as model(batch.tokens, past).flatten(0, 1)[batch.wanted]: [M, n_vocab].
    logits = wanted_logits(model, batch.tokens, batch.places, batch.wanted, past)
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
    with autocast(batch.tokens.device, dtype), fast_products():
        loss = weight * batch_loss(model, prefix, batch)
    optimizer.zero_grad()  # or gradients would be added to those of the last step
    loss.backward()  # through the frozen layers too: what a prefix does, it does through them
    trained = model if prefix is None else prefix
    parameters = list(trained.parameters())
    add_up(parameter.grad for parameter in parameters)  # over processes
    torch.nn.utils.clip_grad_norm_(parameters, clip)  # a rare large gradient must not undo the rest
    optimizer.step()  # AdamW moves each parameter by about the learning rate
    schedule.step()  # which falls a little
    return loss.detach()


def train(settings, model, prefix, encoded, validation, record):
    """The training loop, for `prefix` or, where that is None, for the model.

    encoded, validation   examples as `encode_example` gives them
    record                a Record, which goes on where it was stopped; its log is returned
    """
    trained = model if prefix is None else prefix
    # A frozen weight still takes part in the computation, and gradients pass through it to the
    # prefix; but none is computed for it, and no optimiser knows it.
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
            unseen = validation_loss(model, prefix, validation, settings.dtype,
                                     batch_size=min(64, 4 * settings.batch_size))
            record.end_epoch(unseen, settings.keep)
    trained.eval()
    return record.log


def share_of_batch(examples, device):
    """(the Batch of this process's examples, their share of the batch's tokens with loss)."""
    share = examples[rank() :: world_size()]
    weight = count_targets(share) / count_targets(examples)  # of an empty share: 0
    return make_batch(share or examples, device), weight


def count_targets(encoded):
    """How many tokens carry loss in examples as `encode_example` gives them."""
    return sum(len(answer) for _, answer in encoded)


@torch.no_grad()
def validation_loss(model, prefix, encoded, dtype="float32", batch_size=64):
    """The mean loss a token over all examples, in batches of similar lengths; None of none."""
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
    """A run: trains, saves, describes the test tables with what was saved, scores them.

    settings   Settings; those that are None follow from the others (`settle`)
    folder     where all of it is written; with resume a run that was stopped there goes on
    Returns the five scores, None without a test set or where the run is finished already. Raises
    InputError before any work where it cannot be done.
    """
    settings, folder, device = settle(settings), Path(folder), pick_device(device)
    if decode_batch_size < 1:
        raise InputError(f"--decode-batch-size must be above 0, but is {decode_batch_size}")
    check_folder(folder, asdict(settings), resume)
    if is_finished(folder):
        with claim(folder):  # removes what a kill left
            (folder / "training.pt").unlink(missing_ok=True)
        print(f"{folder} is finished, and is left as it is.")
        return None
    reset_peak_memory(device)
    model, tokenizer = load_both(settings.model, device)
    encoded, made_from = read_data(settings, model, tokenizer)
    made_from |= fingerprints(model, tokenizer)
    check_possible(settings, model, tokenizer, encoded)
    if settings.max_examples:  # the first batch of an epoch that comes before the others
        encoded["train"] = shuffled_batches(encoded["train"], settings.max_examples, settings.seed,
                                            epoch=-1)[0]
    wait_for_all()  # none writes before all have looked

    with claim(folder):
        run = asdict(settings) | made_from
        if rank() == 0:
            check_folder(folder, run, resume)
            write_json(folder / "run.json", run)
        check_one_folder(folder)
        torch.manual_seed(settings.seed)
        prefix = make_prefix(settings, model, tokenizer) if settings.mode == "prefix" else None
        base_size = count_parameters(model)
        n_trained = count_parameters(model if prefix is None else prefix)
        kept = base_size if prefix is None else prefix.key_values().numel()
        print(f"{settings.mode}: {settings.model} of {base_size:,} parameters on {device}; trained "
              f"{n_trained:,}, kept {kept:,} ({kept / base_size:.2%}); learning rate "
              f"{settings.lr}; {len(encoded['train']):,} examples; float32 products on a CPU by "
              f"{products_library()}", flush=True)

        def save(trained):
            if rank() == 0:
                save_weights(settings, trained, folder, made_from)

        log = train(settings, model, prefix, encoded["train"], encoded["valid"],
                    Record(folder, run, save))
        if settings.keep == "best":
            print(f"Kept is epoch {best_epoch(log)}, of the lowest validation loss.")
        costs = {"trained": n_trained, "kept": kept} | costs_of_training(log)
        print(costs_in_words(costs), flush=True)
        del model, prefix
        if rank() == 0:
            name = f"{settings.mode}, {Path(settings.model).name}, {Path(settings.data).name}"
            draw_losses({name: [log]}, folder / "loss.png")
        scores = None
        if encoded["test"]:
            finished = load_run(folder, device)  # what is scored is what was saved
            decoder = {name: getattr(settings, name) for name in DECODER}
            scores = score_test_set(finished, settings.data, decoder, decode_batch_size, folder,
                                    costs)
        if rank() == 0:
            (folder / "training.pt").unlink(missing_ok=True)
    prompt, _ = (encoded["test"] or encoded["train"])[0]
    again = command_line(["describe.py", str(folder), tokenizer.decode(prompt[:-1]).strip()])
    print(f"\nAll of it lies in {folder}/ (loss.png shows the training). Describe another table:\n"
          f"  python {again}")
    return scores


def settle(settings):
    """A copy of the settings, checked, with what follows from others: absolute paths, so that the
    run finds its base and data from everywhere, the width of networks, the learning rate."""
    model, data = str(settings.model), str(settings.data)
    model = model if model in NAMES else str(Path(model).resolve())
    data = data if data in ("e2e", "sample") else str(Path(data).resolve())
    settings = replace(settings, model=model, data=data).check()
    if settings.mode == "prefix" and settings.prefix_hidden is None:
        settings.prefix_hidden = HIDDEN.get(settings.prefix_form)
    if settings.lr is None:
        settings.lr = default_learning_rate(settings)
    return settings


def read_data(settings, model, tokenizer):
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
        for where, example in read_examples(folder, split):
            prompt, answer = encode_example(tokenizer, *example)
            encoded[split].append((prompt, answer))
            n_new = settings.max_new_tokens if split == "test" else len(answer)
            lengths.append((where, P, prompt, n_new))
        made_from[f"{split}_sha256"] = sha256(path)
    check_lengths(lengths, model.config.n_ctx)
    return encoded, made_from


def check_possible(settings, model, tokenizer, encoded):
    """Raises InputError for what would fail hours later: a choice without validation data, an
    impossible search, a figure. Says so where METEOR will be missing."""
    if settings.keep == "best" and not encoded["valid"]:
        raise InputError(f"--keep best: {settings.data} has no validation data to choose by")
    check_search(model, [], [], settings.num_beams, settings.max_new_tokens,
                 settings.length_penalty, banned_tokens(model, tokenizer))
    if encoded["test"] and metrics.meteor_data.find() is None:
        print(metrics.meteor.HOW_TO_GET)
    load_matplotlib()


def make_prefix(settings, model, tokenizer):
    """The prefix that `settings` ask for, at its start: random, or made of words (section 7.4)."""
    start, length = None, settings.prefix_length
    if settings.prefix_words:
        words = tokenizer.encode(settings.prefix_words, allowed_special="all")
        start = activations(model, (words * length)[:length])
    prefix = Prefix(model.config, length, settings.prefix_hidden, settings.prefix_form, start)
    return prefix.to(model.device)


def save_weights(settings, trained, folder, made_from):
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
        raise InputError(f"{out} holds no run to go on with")
    if len(runs) > 1 and (out / "run.json").exists():
        raise InputError(f"{out} holds a run itself; give another --out for several")
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
        raise KeyboardInterrupt(f"; go on with: python {again}") from None


if __name__ == "__main__":
    run_command(main, goes_on=True)
