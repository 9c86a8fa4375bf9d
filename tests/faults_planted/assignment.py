"""Faults in what decays are assigned and when: rules, groups, steps, refreshes, other kinds of decay, audits."""

from faults_planted.fault import Fault

FAULTS = [
    Fault(
        "linear_upside_down",
        "alphadecay/assign.py",
        "low * (1 - share) + high * share",
        "high * (1 - share) + low * share",
        "alphadecay/test_assign.py",
        "heavy tails get more decay instead of less",
    ),
    Fault(
        "median_of_roots",
        "alphadecay/assign.py",
        "mean = fmean(values.values())",
        "mean = sorted(values.values())[len(values) // 2]",
        "alphadecay/test_goldens.py::test_assignments_are_the_published_ones",
        "sqrt and log2 divide by the mean",
    ),
    Fault(
        "sigmoid_over_all",
        "alphadecay/assign.py",
        "members.setdefault(blocks[name], []).append(name)",
        'members.setdefault("", []).append(name)',
        "alphadecay/test_goldens.py::test_assignments_are_the_published_ones",
        "scores are standardised within blocks",
    ),
    Fault(
        "invert_that_is_none",
        "alphadecay/assign.py",
        "scores = {name: ends - score for name, score in scores.items()}",
        "scores = {name: ends + score for name, score in scores.items()}",
        "alphadecay/test_assign.py",
        "the control is the method itself",
    ),
    Fault(
        "budget_by_modules",
        "alphadecay/assign.py",
        "mean = sum(sizes[name] * multiplier for name, multiplier in multipliers.items()) / total",
        "mean = fmean(multipliers.values())",
        "alphadecay/test_assign.py",
        "the budget is matched over modules, not parameters",
    ),
    Fault(
        "budget_before_control",
        "alphadecay/assign.py",
        """        if self.control == "shuffle":
            multipliers = shuffled(multipliers, self.seed)
        elif self.control == "by-type":
            multipliers = role_means(multipliers, _mapping(roles, scores, "roles", "control 'by-type'"))
        if self.budget == "matched":
            multipliers = matched(multipliers, _mapping(sizes, scores, "sizes", "budget 'matched'"))
""",
        """        if self.budget == "matched":
            multipliers = matched(multipliers, _mapping(sizes, scores, "sizes", "budget 'matched'"))
        if self.control == "shuffle":
            multipliers = shuffled(multipliers, self.seed)
        elif self.control == "by-type":
            multipliers = role_means(multipliers, _mapping(roles, scores, "roles", "control 'by-type'"))
""",
        "alphadecay/test_assign.py",
        "a control at a matched budget has another total decay",
    ),
    Fault(
        "shuffle_without_seed",
        "alphadecay/assign.py",
        "random.Random(int(seed)).shuffle(values)",
        "random.shuffle(values)",
        "alphadecay/test_assign.py",
        "the control is another one in each run",
    ),
    Fault(
        "shuffle_drawn_anew",
        "alphadecay/adaptive.py",
        "multipliers = self.assignment.multipliers(",
        "multipliers = replace(self.assignment, seed=self.assignment.seed + self.step).multipliers(",
        "alphadecay/test_schedule.py::test_the_shuffled_control_deals_by_one_permutation_for_the_whole_run",
        "over a run every module gets the mean: no control at all",
    ),
    Fault(
        "norms_are_decayed",
        "alphadecay/groups.py",
        'if norm or short or plain.endswith("bias") or position or token or plain in declared:',
        "if position or token or plain in declared:",
        "alphadecay/test_groups.py",
        "norms and biases are pulled to zero",
    ),
    Fault(
        "declared_exceptions_are_decayed",
        "alphadecay/groups.py",
        "or position or token or plain in declared:",
        "or position or token:",
        "alphadecay/test_groups.py",
        "what the model's no_weight_decay() names is decayed",
    ),
    Fault(
        "decay_without_static",
        "alphadecay/groups.py",
        'return base * group["static_multiplier"] * group["decay_multiplier"]',
        'return base * group["decay_multiplier"]',
        "alphadecay/test_schedule.py",
        "what is excluded from decay is decayed from the first step on",
    ),
    Fault(
        "split_shares_rates",
        "alphadecay/splitting.py",
        "value.detach().clone() if isinstance(value, Tensor) else value",
        "value",
        "alphadecay/test_optimizers.py::test_a_learning_rate_that_is_a_tensor_is_not_shared",
        "a scheduler multiplies one tensor once for each group",
    ),
    Fault(
        "refresh_one_step_early",
        "alphadecay/writer.py",
        "if step % self.interval == 0 or not self._wrote_multipliers or self._due:",
        "if (step + 1) % self.interval == 0 or not self._wrote_multipliers or self._due:",
        "alphadecay/test_schedule.py",
        "refreshes are not at the published steps",
    ),
    Fault(
        "step_is_not_counted_from_the_state",
        "alphadecay/writer.py",
        """        for group in groups:
            group["decay_step"] = step + 1
""",
        """        self._steps = getattr(self, "_steps", 0) + 1
        for group in groups:
            group["decay_step"] = self._steps
""",
        "alphadecay/test_schedule.py::test_the_optimizers_state_alone_resumes_the_decay",
        "a resumed run refreshes at other steps",
    ),
    Fault(
        "inner_steps_count",
        "alphadecay/step_hooks.py",
        "if self._depth > 1:",
        "if self._depth > 2:",
        "alphadecay/test_pytorch_optimizer.py::test_a_step_that_calls_its_parents_counts_once",
        "subclasses that call their parent's step count twice",
    ),
    Fault(
        "skipped_steps_count",
        "alphadecay/step_hooks.py",
        "if not (will_be_skipped(self.optimizer) or is_trial(self.optimizer)):",
        "if not is_trial(self.optimizer):",
        "alphadecay/test_schedule.py::test_steps_that_gradscaler_skips_do_not_count",
        "overflows shift all later refreshes",
    ),
    Fault(
        "closure_comes_too_late",
        "alphadecay/step_hooks.py",
        """            loss = closure()
            if due:
                due = False
                self._before()
            return loss
""",
        """            if due:
                due = False
                self._before()
            return closure()
""",
        "alphadecay/test_loops.py::test_lightning",
        "decays are measured before there are gradients",
    ),
    Fault(
        "frozen_is_refreshed",
        "alphadecay/adaptive.py",
        "if self.frozen and self.step > 0 and self._wrote_multipliers:",
        "if self.frozen and self.step < 0:",
        "alphadecay/test_schedule.py::test_frozen_keeps_the_first_assignment",
        "the control 'frozen' is the method itself",
    ),
    Fault(
        "lag_ends_early",
        "alphadecay/adaptive.py",
        "elif step % self.interval == self.lag:",
        "elif step % self.interval == max(1, self.lag - 1):",
        "alphadecay/test_lag.py",
        "results hold before they are allowed to",
    ),
    Fault(
        "lag_measures_live_weights",
        "alphadecay/sharing.py",
        'copy = weight.to("cpu", copy=True)',
        'copy = weight.to("cpu")',
        "alphadecay/test_lag.py",
        "what is measured depends on how quick the thread is",
    ),
    Fault(
        "lag_leaves_no_trace_in_states",
        "alphadecay/adaptive.py",
        """                group["decay_next"] = {
                    "at": self._measuring_from, "multiplier": multiplier, "score": scores.get(name),
                    "record": by_name.get(name),
                }  # fmt: skip
""",
        """                self.__dict__.setdefault("_next", {})[name] = multiplier
""",
        "alphadecay/test_state.py alphadecay/test_lag.py",
        "a run resumed between measuring and writing keeps the old decays",
    ),
    Fault(
        "gradients_stay_scaled",
        "alphadecay/adaptive.py",
        "norm / float(scale) for name, norm in",
        "norm for name, norm in",
        "alphadecay/test_loops.py::test_a_fused_kernel_that_unscales_by_itself_hides_no_gradient",
        "gradient scores follow GradScaler's scale",
    ),
    Fault(
        "blocks_by_the_first_number",
        "alphadecay/adaptive.py",
        'return ".".join(parts[: numbers[-1] + 1]) if numbers else ""',
        'return ".".join(parts[: numbers[0] + 1]) if numbers else ""',
        "alphadecay/test_baselines.py::test_a_block_is_what_stands_before_the_last_number_and_with_it",
        "all blocks of a stage are standardised together",
    ),
    Fault(
        "replay_a_step_late",
        "alphadecay/replay.py",
        "if step in self._rows or not self._wrote_multipliers or self._due:",
        "if step - 1 in self._rows or not self._wrote_multipliers or self._due:",
        "alphadecay/test_replay.py",
        "the replayed run is not the run",
    ),
    Fault(
        "last_span_is_one_step",
        "alphadecay/replay.py",
        "spans.append(spans[-1] if spans else 1)",
        "spans.append(1)",
        "alphadecay/test_replay.py",
        "means over time forget the last interval",
    ),
    Fault(
        "average_of_awd_swapped",
        "alphadecay/baselines.py",
        "multiplier = KEPT * multiplier + (1 - KEPT) * self.scale * ratio",
        "multiplier = (1 - KEPT) * multiplier + KEPT * self.scale * ratio",
        "alphadecay/test_baselines.py::test_awd_is_one_number_for_all_averaged_as_published",
        "the baseline is not the published one",
    ),
    Fault(
        "awd_without_root",
        "alphadecay/baselines.py",
        "power_sums(trained, 2).sum()]).sqrt()",
        "power_sums(trained, 2).sum()])",
        "alphadecay/test_baselines.py::test_awd_is_one_number_for_all_averaged_as_published",
        "the ratio is that of squared norms",
    ),
    Fault(
        "adadecay_without_mean",
        "alphadecay/entries.py",
        "variances = [square / n - mean**2 for",
        "variances = [square / n for",
        "alphadecay/test_baselines.py::test_entries_are_decayed_as_a_slow_twin_decays_them",
        "gradients are divided by their root mean square",
    ),
    Fault(
        "caution_the_other_way",
        "alphadecay/entries.py",
        "masks = list(torch._foreach_sub(before, after))",
        "masks = list(torch._foreach_sub(after, before))",
        "alphadecay/test_baselines.py::test_entries_are_decayed_as_a_slow_twin_decays_them",
        "entries are decayed where they should be spared",
    ),
    Fault(
        "entries_decay_from_after",
        "alphadecay/entries.py",
        "decays = list(torch._foreach_mul(self._before, rates))",
        "decays = list(torch._foreach_mul(weights, rates))",
        "alphadecay/test_baselines.py",
        "decay is of the weight after the step",
    ),
    Fault(
        "entries_without_gradient_decay",
        "alphadecay/entries.py",
        "if rate and p.grad is not None:",
        "if rate:",
        "alphadecay/test_baselines.py",
        "weights without a gradient shrink",
    ),
    Fault(
        "coupled_passes_as_decoupled",
        "alphadecay/optimizer_copies.py",
        "return bool((decayed - expected).norm() <= TOLERANCE * expected.norm())",
        "return bool((decayed - expected).norm() <= 1 / TOLERANCE * expected.norm())",
        "alphadecay/test_baselines.py",
        "decay is taken off beside Adam's own",
    ),
    Fault(
        "last_glob_counts",
        "alphadecay/names.py",
        "for glob, static in multipliers.items():\n        if fits(names, glob):\n            return",
        "for glob, static in reversed(multipliers.items()):\n        if fits(names, glob):\n            return",
        "alphadecay/test_names.py",
        "an exception before a general glob has no effect",
    ),
    Fault(
        "undecayed_matrices_are_ranked",
        "alphadecay/membership.py",
        "reasons = dict.fromkeys(undecayed, UNDECAYED)",
        "reasons = dict.fromkeys((), UNDECAYED)",
        "alphadecay/test_names.py",
        "matrices without decay set the range of the others' multipliers",
    ),
    Fault(
        "static_multipliers_of_the_state",
        "alphadecay/saved_state.py",
        """other | forgotten | {"static_multiplier": own["static_multiplier"]} for""",
        "other | forgotten for",
        "alphadecay/test_names.py",
        "a run that resumes with another --decay_multiplier silently keeps the old one",
    ),
    Fault(
        "budget_without_static_multipliers",
        "alphadecay/adaptive.py",
        "r.parameters * statics.get(r.name, 1.0)",
        "r.parameters",
        "alphadecay/test_names.py",
        "a matched budget has another total decay than uniform decay",
    ),
    Fault(
        "one_name_of_a_tied_weight",
        "alphadecay/names.py",
        "in model.named_parameters(remove_duplicate=False):",
        "in model.named_parameters():",
        "alphadecay/test_names.py",
        "lm_head names nothing in a GPT-2, and the published lists are refused",
    ),
    Fault(
        "frozen_only_by_the_first_glob",
        "runtime/by_name.py",
        "if any(fits(names[id(parameter)], glob) for glob in globs):",
        "if any(fits(names[id(parameter)], glob) for glob in globs[:1]):",
        "vision/test_named_decays.py",
        "weights that were to stay as they are are trained",
        slow=True,
    ),
]
