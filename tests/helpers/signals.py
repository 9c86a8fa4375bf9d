"""Signals that a program sends itself, and programs run in this process."""

import os
import sys


def in_this_process(program):
    class Done:
        stdout = ""

    def start(command, **_):
        done, argv = Done(), sys.argv
        done.returncode = program(*command[2:])
        sys.argv = argv
        return done

    return start


def signal_at(call, target, number, monkeypatch):
    """Let the program send itself a signal when it calls a function for the n-th time."""
    import importlib

    module, *rest = target.split(".")
    path, left = importlib.import_module(module), rest
    while left and not callable(path) and not hasattr(path, left[0]):
        module += "." + left.pop(0)
        path = importlib.import_module(module)
    for name in left:
        path = getattr(path, name)
    real, calls = path, 0

    def signalled(*args, **named):
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return real(*args, **named)

    monkeypatch.setattr(target, signalled)
