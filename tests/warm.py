"""A process that has imported everything, and forks for each command: none waits for PyTorch.

It has one thread and has computed nothing, so that a fork of it is as good as a fresh process.
A request is a line of JSON: a command to start, answered by its process's id, or {"wait": id},
answered by its status.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def serve():
    """Answers requests until they end; returns in a new process for each command, with it."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = os.fork()
            if answer == 0:
                return request
        print(answer, flush=True)
    sys.exit()


def become(command):
    """Makes this the process of a command, whose files stand for its streams."""
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    for number, (name, flags) in enumerate((("stdin", os.O_RDONLY), ("stdout", os.O_WRONLY),
                                            ("stderr", os.O_WRONLY))):
        os.dup2(os.open(os.path.join(command["streams"], name), flags), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background is deaf to it
    first, *sys.argv[1:] = command["arguments"]
    status = 0
    try:
        if first == "-m":
            runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
        elif first == "-c":
            sys.argv[0] = "-c"
            exec(sys.argv.pop(1), {"__name__": "__main__"})
        else:
            program = first if os.path.exists(first) else str(ROOT / first)
            runpy.run_path(program, run_name="__main__")  # which puts its path into sys.argv
    except SystemExit as ended:
        status = ended.code or 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take down all that was imported would take longer than most commands


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    import matplotlib.figure  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch._dynamo  # noqa: F401  # which an optimiser asks for
    import torch.distributed  # noqa: F401
    import tqdm  # noqa: F401

    import train  # noqa: F401  # and with it all of the front

    gc.freeze()  # a fork that would look through what all share, would copy it
    become(serve())
