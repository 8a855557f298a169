"""What a training writes: a line of its log every ten steps, the weights after each
epoch, and a checkpoint every few minutes.

The loop in train.py says what is computed; this says what is kept of it.
"""

import json
import signal
import sys
import threading
import time
import zipfile

import torch

from support.commands import InputError, progress_bar
from support.devices import peak_memory
from support.files import wrap_disk_errors, wrap_errors, write_aside, write_text
from support.processes import add_up, rank
from support.run_folder import check_same_run

LOG_EVERY = 10  # steps
SAVE_EVERY = 120  # seconds


class Record:
    """The record of one training, in its folder.

    folder         the run's folder
    run            {name: value}: the settings and SHA-256s of the run, by which its state is known
    save_weights   is called with what is trained whenever that is to be kept
    """

    def __init__(self, folder, run=None, save_weights=lambda trained: None):
        self.folder, self.run, self.save_weights = folder, run or {}, save_weights
        self.step, self.log = 0, []

    def begin(self, parts, steps_per_epoch, last_step, device):
        """Goes on where the training was stopped: sets `parts` to their last state, to the bit.

        parts   {name: what has a state_dict}, "trained" and "schedule" among them
        """
        self.parts, self.steps_per_epoch, self.last_step = parts, steps_per_epoch, last_step
        self.device = device
        self.step, self.log = load_state(self.folder, self.run, parts, device)
        if rank() == 0:  # what came after the state was saved, goes
            write_text(self.folder / "log.jsonl", "".join(map(as_line, self.log)))
        self.save()
        if self.step == 0:  # AdamW's two moments of each parameter come with the first step
            self.save_every = max(SAVE_EVERY, 3 * self.save_every)
        print(f"Step {self.step:,} of {self.last_step:,}. A checkpoint is saved after each "
              f"epoch and every {self.save_every / 60:.0f} minutes; Ctrl-C saves it, too.",
              flush=True)
        self.losses, self.n_tokens, self.started = [], 0, time.perf_counter()
        self.bar = progress_bar(total=last_step, initial=self.step, desc="training", unit=" steps",
                                disable=rank() > 0)
        return self

    def __enter__(self):
        self.stopping = Stopping()
        return self

    def __exit__(self, *error):
        self.stopping.end()
        self.bar.close()

    def is_end_of_epoch(self):
        return self.step % self.steps_per_epoch == 0 or self.step == self.last_step

    def epoch(self):
        """Which epoch the last step was of, from 1."""
        return (self.step - 1) // self.steps_per_epoch + 1

    def add(self, loss, n_tokens):
        """Notes a step: its loss, which stays on the device, and how many tokens were read."""
        self.losses.append(loss)
        self.n_tokens += n_tokens
        self.step += 1
        self.bar.update()
        if self.step % LOG_EVERY == 0 or self.is_end_of_epoch():
            self.add_line()
            if not self.is_end_of_epoch():
                self.pause(time.monotonic() - self.saved > self.save_every)

    def add_line(self):
        """The line of the log of the steps since the last one."""
        losses, lr = torch.stack(self.losses), self.parts["schedule"].get_last_lr()[0]
        add_up([losses])  # each has the part of its process
        check_losses(losses, self.step, lr, self.folder)  # waits for the device to do all of it
        loss, seconds = losses.mean().item(), time.perf_counter() - self.started
        self.write(step=self.step, epoch=self.epoch(), loss=loss, lr=lr, steps=len(losses),
                   tokens=self.n_tokens, seconds=seconds, peak_memory=peak_memory(self.device))
        speed = self.n_tokens / seconds
        self.bar.set_postfix_str(f"epoch {self.epoch()}, loss {loss:.3f}, {speed:,.0f} tokens/s",
                                 refresh=False)

    def end_epoch(self, unseen, keep):
        """Keeps the weights after an epoch: always, or ("best") where the validation loss, unseen,
        is the lowest so far."""
        if unseen is not None:
            lr = self.parts["schedule"].get_last_lr()[0]
            check_losses(torch.tensor([unseen], device="cpu"), self.step, lr, self.folder)
            self.write(step=self.step, epoch=self.epoch(), validation_loss=unseen)
            self.bar.clear()
            print(f"epoch {self.epoch()}: validation loss {unseen:.4f} a token", flush=True)
        if keep == "last" or best_epoch(self.log) == self.epoch():
            if rank() == 0:
                self.save_weights(self.parts["trained"])
        self.pause(must_save=True)

    def pause(self, must_save):
        """Between two lines of the log: saves a checkpoint, and stops if asked to."""
        must_end = self.stopping.is_asked_anywhere(self.device)
        if must_save or must_end:
            self.save()
        if must_end:
            raise KeyboardInterrupt
        self.losses, self.n_tokens, self.started = [], 0, time.perf_counter()

    def write(self, **entry):
        """Adds an entry to the log, and to folder/log.jsonl as a line."""
        self.log.append(entry)
        path = self.folder / "log.jsonl"
        if rank() == 0:
            with wrap_disk_errors(path), open(path, "a", encoding="utf-8", newline="\n") as file:
                file.write(as_line(entry))

    def save(self):
        """Saves a checkpoint, and sets the time to the next one so that saving takes at most 2%."""
        started = time.monotonic()
        if rank() == 0:
            save_state(self.folder, self.run, self.parts, self.step, self.log)
        self.saved = time.monotonic()
        self.save_every = max(SAVE_EVERY, 50 * (self.saved - started))


class Stopping:
    """Ctrl-C or SIGTERM (torchrun sends it) asks a training to stop where its state is whole; the
    same a second time ends it at once."""

    def __init__(self):
        self.asked, self.before = None, {}
        if threading.current_thread() is threading.main_thread():  # only that one may listen
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # as in a shell's background
                    self.before[number] = signal.signal(number, self.ask)

    def ask(self, number, frame):
        if self.asked == number:
            raise KeyboardInterrupt
        self.asked = number
        print(f"\nstopping at the next line of the log, within {LOG_EVERY} steps; once more ends "
              "it at once, and what came after the last saved state is lost", file=sys.stderr)

    def is_asked_anywhere(self, device):
        """Whether any of the processes was asked, so that all stop at one step."""
        asked = torch.tensor(self.asked is not None, dtype=torch.float32, device=device)
        add_up([asked])
        return asked.item() > 0

    def end(self):
        for number, before in self.before.items():
            signal.signal(number, before)


def as_line(entry):
    return json.dumps(entry, allow_nan=False) + "\n"


def best_epoch(log):
    """The epoch with the lowest validation loss, of several the first."""
    measured = [entry for entry in log if "validation_loss" in entry]
    return min(measured, key=lambda entry: entry["validation_loss"])["epoch"]


def check_losses(losses, step, lr, folder):
    """Raises InputError where one of the latest losses, up to that of `step`, is not finite."""
    finite = losses.isfinite().tolist()
    if not all(finite):
        first = step - len(finite) + 1 + finite.index(False)
        raise InputError(f"at step {first:,}, at a learning rate of about {lr:.2g}, the loss is no "
                         "finite number any more, and training on would be of no use; start again "
                         f"with a lower --lr and another --out ({folder}/training.pt holds the "
                         "last good state)")


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


def format_costs_line(costs):
    peak = costs["peak_memory"]
    return (f"trained in {costs['seconds'] / 60:.1f} minutes, {costs['seconds_per_step']:.3f} "
            f"seconds a step, {costs['tokens_per_second']:,.0f} tokens a second; peak memory "
            + (f"{peak / 2**30:.2f} GiB" if peak else "unknown"))


# --------------------------------------------------------------------------------------------------
# The state of a training
# --------------------------------------------------------------------------------------------------


def save_state(folder, run, parts, step, log):
    """Saves a checkpoint to folder/training.pt, with the settings of its run."""
    state = {name: part.state_dict() for name, part in parts.items()}
    with write_aside(folder / "training.pt") as path:
        torch.save(state | {"run": run, "step": step, "log": log}, path)


def load_state(folder, run, parts, device):
    """Sets `parts` to what folder/training.pt holds; returns (step, log), (0, []) without one.

    Raises InputError where it is corrupt, or the state of another run.
    """
    path, log = folder / "training.pt", folder / "log.jsonl"
    if not path.exists():
        if log.exists() and log.stat().st_size:
            raise InputError(f"{path} is missing, so this training cannot resume; start again with "
                             "another --out")
        return 0, []
    with wrap_errors(path, "is corrupt, so this training cannot resume; start again with another "
                     "--out"):
        with zipfile.ZipFile(path) as archive:  # PyTorch itself would not look at the checksums
            if wrong := archive.testzip():
                raise ValueError(f"the checksum of {wrong} is wrong")
        state = torch.load(path, device, weights_only=True)
        check_same_run(path, state["run"], run)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return state["step"], state["log"]
