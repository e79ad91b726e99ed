"""The configuration of a training run: one typed, documented field per setting.

    recipe (a complete YAML file, amplify_ds/recipes/)  <-  --config FILE.yaml (any part)  <-  flags (--section.field)

Later sources override earlier ones. Every field is a flag and a YAML key. An unknown key is an error that suggests the
nearest valid one, and all values are checked before anything starts. ZeRO, offload and communication belong to
DeepSpeed's JSON file (training/ds_config.py); neither file may contain settings of the other.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from amplify_ds.errors import AmplifyError
from amplify_ds.structured import parse_yaml, read_yaml

LARGEST_SIZE = 2**16  # limit of every size of a model, far above what fits on one device
MOST_STEPS = 2**30  # with at most 2^32 tokens per step, positions in the stream of rows fit in 64 bits


def setting(description: str, operational: bool = False, **checks) -> Any:
    """Return a documented field. An `operational` one may change on resuming, since it does not affect the model."""
    return Field(description=description, json_schema_extra={"operational": operational}, **checks)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, values):
        for name, value in values.items() if isinstance(values, dict) else ():
            if isinstance(value, bool) and name in cls.model_fields and cls.model_fields[name].annotation is not bool:
                raise ValueError(f"{name} must not be true or false")
        return values

    @model_validator(mode="after")
    def _integers_fit_in_64_bits(self):
        for name, value in self:
            if isinstance(value, int) and value >= 2**63:
                raise ValueError(f"{name} must be below 2^63, found {value:.3g}")
        return self


class Model(Section):
    hidden_size: int = setting("width H of the encoder", gt=0, le=LARGEST_SIZE)
    num_hidden_layers: int = setting("number of encoder blocks", gt=0, le=LARGEST_SIZE)
    num_attention_heads: int = setting("attention heads; the published models have H / 64", gt=0, le=LARGEST_SIZE)
    intermediate_size: int = setting(
        "nominal feed-forward width; the SwiGLU built from it is 2/3 as wide", gt=0, le=LARGEST_SIZE
    )
    norm_eps: float = setting("epsilon of RMSNorm", gt=0)


class Data(Section):
    train: list[str] = setting(
        "training shards (made by data_prep/build_shards.py), each [NAME=]DIR[:WEIGHT]; several are mixed in "
        "proportion to WEIGHT (default 1)",
        operational=True,
    )
    validation: list[str] = setting("validation shards, each [NAME=]DIR, evaluated separately", operational=True)
    workers: int = setting(
        "processes that prepare batches ahead of time; 0: the training process prepares them", True, ge=0, le=1024
    )

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _one_or_several(cls, value):
        return [value] if isinstance(value, str) else value


class Masking(Section):
    fraction: float = setting("share of the residues that are selected as targets", gt=0, lt=1)
    mask_share: float = setting("share of the targets that is replaced by <mask>", ge=0, le=1)
    random_share: float = setting("share of the targets that is replaced by a random token", ge=0, le=1)

    @model_validator(mode="after")
    def _shares(self):
        if self.mask_share + self.random_share > 1:
            raise ValueError("mask_share and random_share together must not exceed 1; the rest stays unchanged")
        return self


Share = Annotated[float, Field(ge=0, lt=1)]


class Optimizer(Section):
    kind: Literal["adamw", "normuon"] = setting(
        "adamw: the published recipe. normuon: orthogonalised momentum for the matrices of the blocks (the matrix_ "
        "settings), AdamW for the other parameters"
    )
    lr: float = setting("peak learning rate; with normuon, of embedding, head and norms", gt=0)
    betas: tuple[Share, Share] = setting("AdamW's decay rates of the first and second moment")
    eps: float = setting("AdamW's epsilon", gt=0)
    weight_decay: float = setting("decoupled weight decay, applied to every parameter as the official code does", ge=0)
    matrix_lr: float = setting("normuon: peak learning rate of the matrices; updates are as large as AdamW's", gt=0)
    matrix_momentum: Share = setting("normuon: decay rate of the momentum")
    matrix_beta: Share = setting("normuon: decay rate of the second moment of each row")
    matrix_weight_decay: float = setting("normuon: decoupled weight decay of the matrices", ge=0)
    gradient_clipping: float = setting("maximum norm of the gradient; 0: no clipping", ge=0)
    schedule: Literal["amplify", "cosine", "linear", "constant"] = setting(
        "decay of the learning rate; amplify is the official cosine × linear"
    )
    warmup_steps: int = setting("steps of linear warm-up from 0", ge=0)
    decay_steps: int = setting("step at which the decay ends", ge=0)
    final_lr_share: float = setting("learning rate after decay_steps, as a share of the peak", ge=0, le=1)

    @model_validator(mode="after")
    def _order(self):
        if self.schedule != "constant" and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps {self.decay_steps} must be greater than warmup_steps {self.warmup_steps}")
        return self


class Training(Section):
    steps: int = setting("total number of optimizer steps", operational=True, gt=0, le=MOST_STEPS)
    global_batch_tokens: int = setting(
        "tokens per optimizer step over all devices; gradient accumulation is derived", gt=0, le=2**32
    )
    micro_batch_rows: int = setting("maximum rows per micro batch; limited by the device's memory", True, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp8"] = setting(
        "auto: bf16 on GPUs, fp32 on CPUs; fp8: bf16 with the blocks' matrix products in FP8, needs TransformerEngine"
    )
    activation_checkpointing: bool = setting("recompute activations in backward: less memory, a third more time", True)
    compile: bool = setting("torch.compile the model: faster steps after a slow first one; needs a C++ compiler", True)
    seed: int = setting("seed of the initial weights, the order of the data and the masks", ge=0, lt=2**63)


class Guards(Section):
    skipped_in_a_row: int = setting(
        "end the run after this many consecutive steps whose gradient was not finite (they are skipped)", True, gt=0
    )
    spike_deviations: float = setting(
        "report a loss this many standard deviations above the mean of the last 256; 0: never", True, ge=0
    )


class Evaluation(Section):
    every: int = setting("steps between evaluations; 0: only before and after training", operational=True, ge=0)
    max_rows: int = setting("rows of each validation set to use during training; 0: all", operational=True, ge=0)


class Checkpoint(Section):
    every: int = setting("steps between checkpoints; 0: only at the end", operational=True, ge=0)
    keep_last: int = setting("number of newest checkpoints to keep", operational=True, ge=1)
    keep_every: int = setting("keep checkpoints at multiples of this step for ever; 0: none", True, ge=0)


class Log(Section):
    every: int = setting("steps between TensorBoard points; metrics are copied from the device only then", True, gt=0)
    device_tflops: float = setting(
        "peak TFLOP/s of one device, used for the utilisation metric; 0: measured at the start", True, ge=0
    )


class Watchdog(Section):
    seconds: float = setting(
        "end the job, naming the rank, when a rank makes no progress for this long; must exceed the longest step or "
        "checkpoint; 0: never",
        True,
        ge=0,
        le=1e9,
    )


class RunConfig(Section):
    model: Model
    data: Data
    masking: Masking
    optimizer: Optimizer
    training: Training
    guards: Guards
    evaluation: Evaluation
    checkpoint: Checkpoint
    log: Log
    watchdog: Watchdog

    @model_validator(mode="after")
    def _steps(self):
        for name in ("evaluation", "checkpoint"):
            if getattr(self, name).every % self.log.every:
                raise ValueError(
                    f"{name}.every {getattr(self, name).every} must be a multiple of log.every {self.log.every}, "
                    "so that a resumed run logs the same points"
                )
        return self

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)

    def binding(self) -> dict[str, Any]:
        """Return the settings that must not change when a run is resumed, as {'section.field': value}."""
        values = self.model_dump(mode="json")
        return {
            f"{section}.{name}": values[section][name]
            for section, name, field in fields()
            if not _is_operational(field)
        }


def fields() -> Iterator[tuple[str, str, FieldInfo]]:
    """Yield (section, name, pydantic field) of every setting, in order."""
    for section, info in RunConfig.model_fields.items():
        assert isinstance(info.annotation, type) and issubclass(info.annotation, Section)
        for name, field in info.annotation.model_fields.items():
            yield section, name, field


def _is_operational(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra["operational"])


def recipes() -> list[str]:
    return sorted(f.name[:-5] for f in resources.files("amplify_ds.recipes").iterdir() if f.name.endswith(".yaml"))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag a setting, grouped by section. Values stay text here; `resolve` gives them their types."""
    groups = {name: parser.add_argument_group(name) for name in RunConfig.model_fields}
    for section, name, field in fields():
        kind = str(field.annotation)
        several: dict[str, Any] = {"nargs": "+", "action": "extend"} if kind.startswith(("list", "tuple")) else {}
        metavar = "|".join(get_args(field.annotation)) if "Literal" in kind else METAVARS[kind]
        groups[section].add_argument(
            f"--{section}.{name}", default=argparse.SUPPRESS, help=field.description, metavar=metavar, **several
        )


METAVARS = {
    str(int): "N",
    str(float): "X",
    str(bool): "true|false",
    str(list[str]): "[NAME=]DIR",
    str(tuple[Share, Share]): "X",
}


def resolve(recipe: str, config_file: str | None, flags: dict[str, Any]) -> RunConfig:
    """Merge recipe, YAML file and flags ({'section.field': text}); return the checked configuration.

    Raises AmplifyError that lists every unknown setting (with the nearest valid name) and every bad value, each with
    its source.
    """
    complete = parse_yaml((resources.files("amplify_ds.recipes") / f"{recipe}.yaml").read_text(encoding="utf-8"))
    layers = [(f"recipe {recipe}", _flat(complete, recipe))]
    if config_file is not None:
        layers.append((config_file, _flat(_read_file(config_file), config_file)))
    layers.append(("command line", flags))

    known = [f"{section}.{name}" for section, name, _ in fields()]
    nested: dict[str, dict[str, Any]] = {section: {} for section in RunConfig.model_fields}
    origin, problems = {}, []
    for source, values in layers:
        for key, value in values.items():
            if key not in known:
                problems.append(f"{key} ({source}): {unknown_setting(key, known)}")
                continue
            section, name = key.split(".")
            nested[section][name] = None if value == "null" else value
            origin[key] = source
    if not problems:
        try:
            return RunConfig.model_validate(nested)
        except ValidationError as error:
            for item in error.errors():
                key = ".".join(str(part) for part in item["loc"][:2])
                message = item["msg"].removeprefix("Value error, ")
                value = "" if item["type"] in ("missing", "value_error") else f", found {item['input']!r:.80}"
                problems.append(f"{key} ({origin.get(key, 'several settings')}): {message}{value}")
    raise AmplifyError("invalid configuration:\n  " + "\n  ".join(problems))


def unknown_setting(key: str, known: list[str]) -> str:
    """Return why `key` is refused and which setting was probably meant."""
    if any(word in key.lower() for word in ("zero", "offload", "stage", "comm")):
        return "ZeRO, offload and communication are set in the DeepSpeed file (--deepspeed_config), not here"
    by_field = {name.split(".")[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, 1, 0.75) or [
        by_field[name] for name in difflib.get_close_matches(key.split(".")[-1], by_field, 1, 0.75)
    ]
    hint = (
        f"did you mean {near[0]}?"
        if near
        else f"--help lists the settings (sections {', '.join(RunConfig.model_fields)})"
    )
    return f"no such setting; {hint}"


def _read_file(path: str) -> dict[str, Any]:
    try:
        content = read_yaml(Path(path))
    except FileNotFoundError:
        raise AmplifyError(f"{path}: no such configuration file") from None
    if not isinstance(content, dict):
        raise AmplifyError(f"{path}: expected sections ({', '.join(RunConfig.model_fields)}), found {content!r:.60}")
    return content


def _flat(content: dict[str, Any], source: str) -> dict[str, Any]:
    """{'section': {'field': value}} -> {'section.field': value}. Anything else keeps its key, and is refused later."""
    flat: dict[str, Any] = {}
    for section, values in content.items():
        if isinstance(values, dict):
            settings = {f"{section}.{name}": value for name, value in values.items()}
            if repeated := sorted(flat.keys() & settings):
                raise AmplifyError(f"{source}: {repeated[0]} appears twice")
            flat.update(settings)
        elif section in RunConfig.model_fields:
            raise AmplifyError(f"{source}: {section} must hold settings, as in `{section}: {{name: value}}`")
        elif str(section) in flat:
            raise AmplifyError(f"{source}: {section} appears twice")
        else:
            flat[str(section)] = values
    return flat
