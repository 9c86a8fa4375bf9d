"""Translates option names and values of the published programs, and model names of older timm, into ours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """An option of the published programs: the option of ours that it sets, and our words for its values."""

    option: str
    values: Mapping[Any, str] = field(
        default_factory=dict
    )  # keys True and False for a switch; other values pass unchanged


PUBLISHED: dict[str, Published] = {
    "opt": Published("optimizer"),
    "use_modulewise_wd": Published("decay", {True: "alphadecay", False: "uniform"}),
    "use_AWD_NeurIPS2023": Published("decay", {True: "awd", False: "uniform"}),
    "save_every": Published("checkpoint_every"),
    "grad_clipping": Published("clip_grad"),
    "dtype": Published("amp", {"bfloat16": "bf16", "float16": "fp16", "float32": "none"}),
    "unbalancedWD_every": Published("decay_interval"),
    "alpha_positively_with_WD": Published("decay_control", {True: "none", False: "invert"}),
    "wd_min_ratio": Published("decay_low"),
    "wd_max_ratio": Published("decay_high"),
    "xmin_pos": Published("decay_xmin_pos"),
    "pl_fitting": Published("decay_fit"),
    "assign_func": Published(
        "decay_assign",
        {"tb_linear_map": "linear", "tb_sqrt": "sqrt", "tb_log2": "log2", "layerwise_sigmoid": "sigmoid"},
    ),
    # The published fnorm is the squared norm, and spectral_norm the largest eigenvalue.
    "esd_metric_for_tb": Published(
        "decay_metric",
        {
            "fnorm": "squared_frobenius_norm",
            "spectral_norm": "largest_eigenvalue",
            "alphahat": "alpha_hat",
            "gradnorm": "grad_norm",
            "gradnorm_d_weightnorm": "grad_to_weight",
        },
    ),
}
# Model names that timm has changed since.
RENAMED_VALUES: dict[str, Mapping[str, str]] = {
    "model": {f"vit_deit_{size}_patch16_224": f"deit_{size}_patch16_224" for size in ("tiny", "small", "base")},
}
