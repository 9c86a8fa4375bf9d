"""Faults in vision training and in steps: schedules, batches, augmentation, micro-steps, evaluation, weights."""

from faults_planted.fault import Fault

FAULTS = [
    Fault(
        "warm_up_from_zero",
        "runtime/schedules.py",
        "return self.lr * (step + 1) / warmup",
        "return self.lr * step / warmup",
        "vision/test_engine.py",
        "the first step does nothing and the peak is not reached",
    ),
    Fault(
        "l2_gradient_without_its_two",
        "runtime/steps.py",
        "factor = 2 * l2 *",
        "factor = l2 *",
        "runtime/test_schedules.py",
        "the explicit L2 term is half as strong as --l2 says",
    ),
    Fault(
        "l2_on_all_weights",
        "runtime/steps.py",
        'factor = 2 * l2 * group["static_multiplier"]',
        "factor = 2 * l2",
        "runtime/test_schedules.py",
        "norms and biases get the L2 term too",
    ),
    Fault(
        "corrected_decay_ignores_the_rate",
        "runtime/schedules.py",
        "return self.weight_decay * self.lr_at(step) / self.lr",
        "return self.weight_decay",
        "runtime/test_schedules.py",
        "corrected decay does not fall with the learning rate",
    ),
    Fault(
        "timescale_of_momentum",
        "runtime/timescale.py",
        'return (1 - first["momentum"]) / (1 - first["dampening"]) / peak',
        "return 1 / peak",
        "runtime/test_schedules.py",
        "the timescale of SGD with momentum is ten times too long",
    ),
    Fault(
        "muon_at_the_rate_of_adamw",
        "runtime/optimizers.py",
        'group |= {"optimizer": "adamw", "lr_scale": group.get("lr_scale", 1.0) * scale}',
        'group |= {"optimizer": "adamw"}',
        "runtime/test_optimizers.py",
        "AdamW trains the rest at Muon's learning rate",
    ),
    Fault(
        "cosine_ends_behind_the_run",
        "runtime/schedules.py",
        "progress = min(step / (steps - 1), 1.0) if steps > 1 else 0.0",
        "progress = min(step / steps, 1.0)",
        "vision/test_engine.py",
        "the last step is not at the lowest rate",
    ),
    Fault(
        "warm_up_counts_epochs",
        "vision/run.py",
        "warmup = options.warmup_steps if by_steps else options.warmup_epochs * steps_per_epoch",
        "warmup = options.warmup_steps if by_steps else options.warmup_epochs",
        "vision/test_engine.py",
        "warm-up takes 20 steps instead of 20 epochs",
    ),
    Fault(
        "schedule_flattens_shares",
        "runtime/schedules.py",
        'group["base_weight_decay"] = base',
        'group["weight_decay"] = base',
        "vision/test_models.py::test_layer_decay_alphadecay_and_both_schedules_compose",
        "the schedule of the base writes over every module's share",
    ),
    Fault(
        "rates_of_layers_are_lost",
        "runtime/schedules.py",
        'group["lr"] = lr * group.get("lr_scale", 1.0)',
        'group["lr"] = lr',
        "vision/test_models.py::test_layer_decay_alphadecay_and_both_schedules_compose",
        "layer decay has no effect from the first step on",
    ),
    Fault(
        "first_layers_are_quickest",
        "optim_factory.py",
        "layer_decay ** (last - layer)",
        "layer_decay**layer",
        "vision/test_models.py::test_each_layers_rate_is_a_fixed_share_of_the_nexts_and_every_parameter_keeps_its_group",
        "fine-tuning moves the stem most and the head least",
    ),
    Fault(
        "seed_of_the_shuffle_is_fixed",
        "runtime/decay_options.py",
        '{"seed": seed}',
        '{"seed": 0}',
        "vision/test_models.py::test_the_control_is_dealt_by_the_seed_of_the_run",
        "all seeds of the control deal the same permutation",
    ),
    Fault(
        "micro_steps_add_up",
        "engine.py",
        "loss = rules.criterion(learner.model(images), targets) / rules.accumulate",
        "loss = rules.criterion(learner.model(images), targets)",
        "vision/test_engine.py",
        "gradients grow with the number of micro-steps",
    ),
    Fault(
        "clip_before_unscale",
        "runtime/steps.py",
        """    learner.scaler.unscale_(learner.optimizer)
    if rules.l2:
        add_l2(learner.optimizer, rules.l2)
    norm = clipped_norm(learner.plain, rules.clip_grad)
""",
        """    norm = clipped_norm(learner.plain, rules.clip_grad)
    learner.scaler.unscale_(learner.optimizer)
""",
        "vision/test_engine.py",
        "in fp16 gradients are clipped to nearly nothing",
    ),
    Fault(
        "gradients_are_kept",
        "runtime/steps.py",
        "    learner.optimizer.zero_grad(set_to_none=True)\n    return loss",
        "    return loss",
        "vision/test_engine.py",
        "every step adds the gradients of those before",
    ),
    Fault(
        "training_in_evaluation_mode",
        "engine.py",
        "    learner.model.train()\n",
        "",
        "vision/test_engine.py",
        "no dropout, no batch statistics",
    ),
    Fault(
        "statistics_of_bad_steps_stay",
        "runtime/steps.py",
        "        _restore_buffers(learner, buffers)\n",
        "",
        "runtime/test_finite.py::test_a_skipped_step_leaves_running_statistics_alone",
        "one bad batch spoils batch norm for ever",
    ),
    Fault(
        "gradients_are_joined_at_the_first",
        "runtime/steps.py",
        "last = micro_step == rules.accumulate - 1",
        "last = micro_step == 0",
        "project/test_costs.py::test_only_the_last_micro_step_joins_gradients",
        "ranks train apart with micro-steps",
    ),
    Fault(
        "average_is_a_step_behind",
        "runtime/steps.py",
        "learner.ema.update(learner.plain, step=step + 1)",
        "learner.ema.update(learner.plain, step=step)",
        "vision/test_engine.py",
        "timm's warm-up of the average starts a step late",
    ),
    Fault(
        "average_before_the_step",
        "runtime/steps.py",
        """    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    if learner.ema is not None:
        learner.ema.update(learner.plain, step=step + 1)
""",
        """    if learner.ema is not None:
        learner.ema.update(learner.plain, step=step + 1)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
""",
        "vision/test_engine.py",
        "the average lacks the newest weights",
    ),
    Fault(
        "mixed_alike_at_every_step",
        "engine.py",
        "with seeded(rules.seed, step, micro_step, ranks.rank):",
        "with seeded(rules.seed, micro_step, ranks.rank):",
        "vision/test_engine.py",
        "mixup draws the same numbers at every step",
    ),
    Fault(
        "mixed_alike_in_micro_steps",
        "engine.py",
        "with seeded(rules.seed, step, micro_step, ranks.rank):",
        "with seeded(rules.seed, step, ranks.rank):",
        "vision/test_engine.py",
        "all micro-steps of a step are mixed alike",
    ),
    Fault(
        "mixed_alike_on_all_ranks",
        "engine.py",
        "with seeded(rules.seed, step, micro_step, ranks.rank):",
        "with seeded(rules.seed, step, micro_step):",
        "vision/test_engine.py",
        "all ranks mix alike",
    ),
    Fault(
        "evaluated_in_training_mode",
        "engine.py",
        "    model.eval()\n",
        "",
        "vision/test_engine.py",
        "accuracies are those of dropout and batch statistics",
    ),
    Fault(
        "evaluation_ends_training_mode",
        "engine.py",
        "model.train(was_training)",
        "model.train(False)",
        "vision/test_engine.py",
        "behind the first evaluation nothing drops out",
    ),
    Fault(
        "loss_is_a_mean_of_means",
        "engine.py",
        'loss = nn.functional.cross_entropy(logits, labels, reduction="sum")',
        'loss = nn.functional.cross_entropy(logits, labels, reduction="mean")',
        "vision/test_engine.py",
        "the loss depends on the size of batches",
    ),
    Fault(
        "accuracy_over_batches",
        "engine.py",
        "torch.full_like(loss, len(labels))",
        "torch.full_like(loss, 1)",
        "vision/test_engine.py",
        "the denominator is not the number of images",
    ),
]
