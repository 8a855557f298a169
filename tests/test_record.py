"""What a training leaves as it goes: finite losses, costs, and a state that is saved in time."""

import math
import signal

import pytest
import torch

from support import record
from support.commands import InputError
from support.record import Record, Stopping, costs_of_training


class Schedule:
    """A learning rate that stays as it is."""

    def get_last_lr(self):
        return [0.1]

    def state_dict(self):
        return {}


def begun(folder, n_steps=40, steps_per_epoch=20):
    """A Record of a training of two epochs that has just begun."""
    trained = torch.nn.Linear(1, 1)
    return Record(folder).begin({"trained": trained, "schedule": Schedule()}, steps_per_epoch,
                                n_steps, torch.device("cpu"))


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_stops_the_training(tmp_path, loss):
    with begun(tmp_path) as made, pytest.raises(InputError, match="is no finite number"):
        made.end_epoch(loss, "last")


def test_peak_memory_is_the_highest_of_all_lines():
    log = [{"loss": 1.0, "seconds": 1.0, "steps": 10, "tokens": 5, "peak_memory": peak}
           for peak in (3, 9, 7)]
    assert costs_of_training(log)["peak_memory"] == 9


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_same_signal_a_second_time_ends_at_once(number, capsys):
    stopping = Stopping()
    try:
        signal.raise_signal(number)
        assert stopping.is_asked_anywhere(torch.device("cpu"))
        assert "once more ends it at once" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    finally:
        stopping.end()


def test_the_state_is_saved_after_each_epoch_and_every_few_minutes_and_not_at_each_line(
        tmp_path, monkeypatch):
    clock, saved = [0.0], []
    monkeypatch.setattr(record.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(record, "LOG_EVERY", 1)
    with begun(tmp_path, steps_per_epoch=20) as made:
        monkeypatch.setattr(record, "save_state", lambda *args: saved.append(made.step))
        for _ in range(40):
            clock[0] += made.save_every / 8 + 1e-3
            made.add(torch.tensor(1.0), 1)
            if made.is_end_of_epoch():
                made.end_epoch(None, "last")
    assert saved == [8, 16, 20, 28, 36, 40]


def test_a_training_whose_state_was_removed_does_not_begin_again_unasked(tmp_path):
    with begun(tmp_path) as made:
        for _ in range(record.LOG_EVERY):
            made.add(torch.tensor(1.0), 1)
    (tmp_path / "training.pt").unlink()
    with pytest.raises(InputError, match=r"training\.pt is missing, so this training cannot"):
        begun(tmp_path)
    assert (tmp_path / "log.jsonl").read_text()  # and the log is as it was
