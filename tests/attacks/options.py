"""Every option of both trainers with a value of another type in a run's config.json, and config.json of every kind."""

import os
from dataclasses import fields

import main
import main_llama
from attacks.attack import BAD_JSON, Attack, put
from runtime.command import PER_CALL

DEEP_VALUE = {"a": {"b": [1]}}
BASE = {"main.py": {"data_set": "digits"}, "main_llama.py": {}}


def _typed(program: str, classes) -> list[Attack]:
    found = []
    for each in (each for cls in classes for each in fields(cls)):
        if each.name not in (*PER_CALL, "output_dir"):
            found.append(
                Attack(
                    f"{program} {each.name} of another type", program, "--config {here}/config.json", f"--{each.name}",
                    lambda here, name=each.name: put(here / "config.json", BASE[program] | {name: DEEP_VALUE}),
                )
            )  # fmt: skip
    return found


ATTACKS = [*_typed("main.py", main.OPTION_CLASSES), *_typed("main_llama.py", main_llama.OPTION_CLASSES)]
for _program in ("main.py", "main_llama.py"):
    ATTACKS += [
        Attack(
            f"{_program} config that is {kind}", _program, "--config {here}/config.json", "config.json",
            lambda here, content=content: put(here / "config.json", content),
        )
        for kind, content in BAD_JSON.items()
    ]  # fmt: skip
    ATTACKS += [
        Attack(f"{_program} {words}", _program, words, culprit)
        for words, culprit in (
            ("--lr 1e400", "--lr"), ("--lr -1", "--lr"), ("--lr nan", "--lr"), ("--weight_decay inf", "--weight_decay"),
            ("--seed -1", "--seed"), ("--seed 1.5", "--seed"), ("--batch_size 0", "--batch_size"),
            ("--batch_size -3", "--batch_size"), ("--batch_size 1x", "--batch_size"), ("--max_steps 0", "--max_steps"),
            ("--save_ckpt_num 0", "--save_ckpt_num"), ("--log_interval 0", "--log_interval"),
            ("--decay_interval -5", "--decay_interval"), ("--amp fp8", "--amp"), ("--device tpu", "--device"),
            ("--on_nonfinite pray", "--on_nonfinite"), ("--decay", "--decay"), ("--nonsense", "--nonsense"),
            ("word", "word"), ("--decay_metric __class__", "--decay_metric"), ("--optimizer ../x", "--optimizer"),
            ("--overwrite perhaps", "--overwrite"), ("--allow_changed nonsense", "--allow_changed"),
            ("--resume {here}/nowhere", "nowhere"), ("--resume {here}", "is neither a checkpoint"),
            ("--config {here}/nowhere", "nowhere"),
        )
    ]  # fmt: skip
ATTACKS += [
    Attack(f"main.py {words}", "main.py", words, culprit, lambda here: os.mkfifo(here / "pipe"))
    for words, culprit in (
        ("--config {here}/pipe", "--config"), ("--finetune {here}/pipe", "--finetune"),
        ("--decay replay --decay_ledger {here}/pipe", "/pipe"), ("--cutmix_minmax 0.9 0.1", "--cutmix_minmax"),
        ("--recount 99999999", "--recount"), ("--aa rand-n999999999", "--aa"), ("--aa augmix-w999999999", "--aa"),
        ("--output_dir=", "--output_dir"), ("--output_dir {here}/\udcff", "--output_dir"),
    )
]  # fmt: skip
ATTACKS += [
    Attack(
        f"{program} {name} {kind}", program, "--config {here}/config.json", f"--{name}",
        lambda here, content=BASE[program] | {name: value}: put(here / "config.json", content),
    )
    for program, name, kind, value in (
        ("main.py", "lr", "of 400 digits", 10**400), ("main_llama.py", "lr", "of 400 digits", 10**400),
        ("main.py", "cutmix_minmax", "one number", 0.5), ("main.py", "decay_high", "infinite", float("inf")),
        ("main.py", "amp", "that steers the terminal", "\x1b[2J"),
        ("main_llama.py", "decay_metric", "that steers the terminal", "\x1b[2J"),
    )
]  # fmt: skip
