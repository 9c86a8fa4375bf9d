"""Faults in what keeps a run safe: checkpoints, resuming, signals, bad steps, options, the script for Slurm."""

from faults_planted.fault import Fault

FAULTS = [
    Fault(
        "nothing_is_synced",
        "runtime/checkpoints.py",
        "            _sync(path)\n        if target.exists():",
        "            path.stat()\n        if target.exists():",
        "test_checkpoints.py",
        "a power cut leaves an empty file under a whole checkpoint's name",
    ),
    Fault(
        "log_is_not_synced",
        "runtime/checkpoints.py",
        "for path in [*temporary.iterdir(), temporary, *filter(Path.exists, before_rename)]:",
        "for path in [*temporary.iterdir(), temporary]:",
        "test_checkpoints.py",
        "a checkpoint counts on log lines that a power cut took",
    ),
    Fault(
        "folder_is_not_synced",
        "runtime/checkpoints.py",
        "        _sync(folder)\n",
        "",
        "test_checkpoints.py",
        "after a power cut the rename may not have happened",
    ),
    Fault(
        "renamed_before_synced",
        "runtime/checkpoints.py",
        """        for path in [*temporary.iterdir(), temporary, *filter(Path.exists, before_rename)]:
            _sync(path)
        if target.exists():
            os.rename(target, old)  # not deleted before the new one is there; see recover
        os.rename(temporary, target)
""",
        """        if target.exists():
            os.rename(target, old)  # not deleted before the new one is there; see recover
        os.rename(temporary, target)
        for path in [*target.iterdir(), target, *filter(Path.exists, before_rename)]:
            _sync(path)
""",
        "test_checkpoints.py",
        "for a moment a checkpoint looks whole and is not on the disk",
    ),
    Fault(
        "old_one_is_deleted_first",
        "runtime/checkpoints.py",
        "os.rename(target, old)  # not deleted",
        "shutil.rmtree(target)  # not deleted",
        "test_checkpoints.py",
        "a crash while a checkpoint is replaced leaves none",
    ),
    Fault(
        "json_is_not_synced",
        "runtime/runfolder.py",
        "        os.fsync(file.fileno())  # else",
        "        pass  # else",
        "test_checkpoints.py",
        "a power cut leaves an empty summary.json, and the run counts as finished",
    ),
    Fault(
        "hash_is_not_compared",
        "runtime/checkpoints.py",
        "if sha256(file) != expected:",
        "if not sha256(file):",
        "test_checkpoints.py",
        "broken weights are trained on",
    ),
    Fault(
        "states_may_run_code",
        "runtime/checkpoints.py",
        'return torch.load(self.path / STATE, map_location="cpu", weights_only=True)',
        'return torch.load(self.path / STATE, map_location="cpu", weights_only=False)',
        "test_checkpoints.py::test_a_checkpoint_can_run_no_code",
        "somebody else's checkpoint can do anything",
    ),
    Fault(
        "best_is_deleted",
        "runtime/checkpoints.py",
        "if path.name not in linked:",
        "if path.name:",
        "test_checkpoints.py::test_the_newest_and_the_linked_are_kept",
        "the best checkpoint goes with the old ones",
    ),
    Fault(
        "copies_follow_the_training",
        "runtime/checkpoints.py",
        "taken = cls(step, copied(dict(model)), average,",
        "taken = cls(step, dict(model), average,",
        "test_checkpoints.py::test_contents_do_not_follow_what_training_goes_on_to_do",
        "a checkpoint mixes weights of several steps",
    ),
    Fault(
        "average_is_not_restored",
        "runtime/learner.py",
        "if learner.averaged is not None and ema_weights is not None:",
        "if learner.averaged is None and ema_weights is not None:",
        "test_resume.py::test_a_checkpoint_within_an_epoch_can_be_continued_elsewhere",
        "a resumed average begins with fresh weights",
    ),
    Fault(
        "scaler_is_not_restored",
        "runtime/learner.py",
        'learner.scaler.load_state_dict(state["scaler"])',
        "learner.scaler.state_dict()",
        "test_resume.py::test_whatever_is_trained_resumes_to_the_same_bits[fp16]",
        "fp16 begins again with overflows",
    ),
    Fault(
        "random_state_is_not_restored",
        "runtime/learner.py",
        'restore_random_state(state["random"][ranks.rank % len(state["random"])])',
        "random_state()",
        "test_resume.py::test_a_checkpoint_within_an_epoch_can_be_continued_elsewhere",
        "a resumed run drops out other units",
    ),
    Fault(
        "random_state_of_rank_0",
        "runtime/learner.py",
        'restore_random_state(state["random"][ranks.rank % len(state["random"])])',
        'restore_random_state(state["random"][0])',
        "test_checkpoints.py",
        "after a resumption all ranks drop out the same",
    ),
    Fault(
        "loss_begins_anew",
        "runtime/keeper.py",
        'self.loss_steps: int = state.get("loss_steps", 0)',
        "self.loss_steps: int = 0",
        "test_resume.py::test_a_checkpoint_within_an_epoch_can_be_continued_elsewhere",
        "the logged training loss is of the wrong number of steps",
    ),
    Fault(
        "best_is_forgotten",
        "runtime/session.py",
        'dict(state.get("best", {}))',
        "{}",
        "test_resume.py::test_the_links_of_the_best_follow_what_is_repeated "
        "test_resume.py::test_whatever_is_trained_resumes_to_the_same_bits[sgd]",
        "a resumed run calls a worse epoch its best",
    ),
    Fault(
        "later_equals_are_better",
        "runtime/session.py",
        'value > before["value"] if higher_is_better else value < before["value"]',
        'value > before["value"] if not higher_is_better else value < before["value"]',
        "test_run.py::test_the_summary_agrees_with_the_log "
        "test_resume.py::test_the_links_of_the_best_follow_what_is_repeated",
        "the worst epoch is kept as the best",
    ),
    Fault(
        "log_is_not_cut_back",
        "runtime/runfolder.py",
        "for row in rows[:count]))",
        "for row in rows))",
        "test_run.py::test_going_back_to_an_earlier_checkpoint_forgets_the_later_ones "
        "test_resume.py::test_stopped_at_any_step_it_resumes_to_the_same_bits[3]",
        "a resumed log holds steps twice",
    ),
    Fault(
        "evaluation_is_forgotten",
        "runtime/keeper.py",
        'state.get("evaluation_due", False)',
        "False",
        "test_resume.py::test_told_to_end_it_saves_leaves_a_mark_and_goes_on[evaluating-SIGTERM]",
        "an evaluation that was interrupted is missing in the log",
    ),
    Fault(
        "loss_of_one_rank",
        "runtime/processes.py",
        "            dist.all_reduce(values)\n",
        "            pass\n",
        "test_processes.py::test_what_is_added_up_is_added_up_over_ranks",
        "every rank logs the figures of its own share",
    ),
    Fault(
        "drift_is_let_through",
        "runtime/drift.py",
        "if each.room not in allowed and each.name not in allowed]",
        "if each.room not in allowed and each.name in allowed]",
        "test_drift.py::test_what_a_run_cannot_change_is_refused_before_anything_is_written test_drift.py",
        "a run goes on with another learning rate",
    ),
    Fault(
        "unknown_facts_pass",
        "runtime/drift.py",
        "if name not in facts_before or facts_before[name] != value:",
        "if facts_before.get(name, value) != value:",
        "test_drift.py::test_a_fact_that_the_checkpoint_does_not_know_is_changed",
        "other data pass where the checkpoint is older",
    ),
    Fault(
        "usr1_kills",
        "runtime/preemption.py",
        "SIGNALS = (signal.SIGTERM, signal.SIGUSR1)",
        "SIGNALS = (signal.SIGTERM,)",
        "test_resume.py::test_both_signals_are_noted_and_end_nothing_at_once",
        "Slurm's warning ends the run without a checkpoint",
    ),
    Fault(
        "told_to_end_is_failed",
        "runtime/errors.py",
        "EXIT_PREEMPTED = 75",
        "EXIT_PREEMPTED = 1",
        "test_resume.py::test_told_to_end_it_saves_leaves_a_mark_and_goes_on[training-SIGTERM]",
        "a scheduler takes a saved run for a failed one",
    ),
    Fault(
        "no_mark_is_left",
        "runtime/session.py",
        '        (self.folder / runfolder.REQUEUE).write_text(f"{told}; go on with --resume auto\\n")\n',
        "",
        "test_resume.py::test_told_to_end_it_saves_leaves_a_mark_and_goes_on[training-SIGTERM]",
        "the job is not put back into the queue",
    ),
    Fault(
        "signals_stay_caught",
        "runtime/preemption.py",
        "            signal.signal(number, handler)\n",
        "            signal.getsignal(number)\n",
        "test_resume.py::test_a_signal_does_what_it_did_before_once_the_run_is_over",
        "a program that ran a training can no longer be ended",
    ),
]
