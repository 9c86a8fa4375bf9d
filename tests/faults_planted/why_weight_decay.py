"""Faults in translating the printed commands of "Why Do We Need Weight Decay in Modern Deep Learning?"."""

from faults_planted.fault import Fault

FAULTS = [
    Fault(
        "cosine_an_update_short",
        "scripts/why_weight_decay/language.py",
        '"--cosine_steps", last + 1]',
        '"--cosine_steps", last]',
        "llama/test_why_weight_decay_commands.py::test_learning_rates_are_the_published_ones",
        "a printed command has other learning rates than the published program",
    ),
    Fault(
        "published_flags_win_over_ours",
        "scripts/why_weight_decay/published.py",
        "return [*program.words(values, own), *own], values, own",
        "return [*own, *program.words(values, own)], values, own",
        "llama/test_why_weight_decay_commands.py::test_later_words_win_and_ours_win_over_all",
        "a small twin of a printed command would train the large model",
    ),
    Fault(
        "fine_tune_counts_from_0",
        "scripts/why_weight_decay/language.py",
        '{"steps": steps + _resumed_step(values, own), "shape"',
        '{"steps": steps, "shape"',
        "llama/test_why_weight_decay_commands.py::test_a_fine_tune_begins_at_the_step_of_our_checkpoint",
        "a fine-tune of a checkpoint at its number of steps makes none",
    ),
]
