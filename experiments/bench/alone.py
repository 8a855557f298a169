"""A function in a process of its own, which holds nothing else and ends with the one that asked."""

import multiprocessing
import os
import signal
import sys
from threading import Thread

from support.commands import InputError, run_command

SPAWN = multiprocessing.get_context("spawn")


def alone(function, *arguments):
    """What a function returns, computed in a process of its own.

    Exits where the function raises something, which its process tells. Raises InputError where that
    process was killed.
    """
    receiver, sender = SPAWN.Pipe(duplex=False)
    process = SPAWN.Process(target=answer, args=(sender, function, *arguments), daemon=True)
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: Ctrl-C ends this process,
    process.start()  # and so the other
    signal.signal(signal.SIGINT, on_ctrl_c)
    sender.close()  # the other process alone has it now, so without that one nothing is received
    try:
        return receiver.recv()
    except EOFError:
        process.join()
        if process.exitcode == 1:
            sys.exit(1)
        raise InputError(f"a measurement was killed (status {process.exitcode}), perhaps because "
                         "memory was full; a smaller --model needs less") from None


def answer(sender, function, *arguments):
    """Sends what a function returns."""
    Thread(target=end_with_parent, daemon=True).start()
    run_command(lambda: sender.send(function(*arguments)))


def end_with_parent():
    """Ends this process as soon as its parent has ended, even where that was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
