"""Checkpoints: safetensors + JSON, nothing pickled. A folder is a checkpoint once `checkpoint.json` is in it."""

import hashlib
import json
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from lawm import __version__
from lawm.config import Config, LawmError, TrueActions, differing_fields, parse_config
from lawm.data import TAUGHT, Cursor, Labels, StateCache
from lawm.model import Encoder, states_per_clip
from lawm.storage import NotFoundError, delete, exists, join, last_part, list_files, read_bytes, write_bytes
from lawm.training.fine_tune import LEARNING, build_latent_action
from lawm.training.objective import (
    ControllerObjective,
    DecoderObjective,
    LatentActionObjective,
    Objective,
    PolicyObjective,
    PriorObjective,
)

FORMAT = 1
NAMES = {
    "format", "kind", "step", "cursor", "encoder_fingerprint", "fingerprint", "parent", "extra", "metrics", "config"
}  # fmt: skip
"""What checkpoint.json holds; `lawm`, the version that wrote it, is for people."""


EXECUTION = ("encoder.weights", "model.world_model.activation_checkpointing")
"""Fields of encoder and model that change nothing in what is computed."""


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on, or an evaluation to start.

    `kind` is the objective's; `parent` names the latent action model that a controller or decoder
    was trained on (`uri`, `fingerprint`); `extra` holds plain facts such as `action_dim`.
    """

    kind: str
    config: Config
    step: int
    cursor: Cursor
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor] | None = None
    encoder_fingerprint: str = ""
    parent: dict[str, str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    clips: pa.Table | None = None
    """Rows of the log of clips since the last checkpoint; they lie beside it (`lawm.training.read_clip_log`)."""

    @property
    def fingerprint(self) -> str:
        """A hash of the weights."""
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in sorted(self.weights.items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


OWNER = "owner"
"""The file of a run folder that names its only writer."""


class RunTaken(LawmError):
    """Another process trains this run now. `by`: its claim."""

    def __init__(self, message: str, by: str = "") -> None:
        super().__init__(message)
        self.by = by


def claim_run(run: str, who: str = "") -> str:
    """Makes the caller the only writer of `run`, until another claims it; the claim, which begins with `who`.

    Where a machine is cut off from the cluster, its workers train on for a while after they were replaced.
    """
    claim = f"{who} {secrets.token_hex(8)}"
    write_bytes(join(run, OWNER), claim.encode())
    return claim


def owner_of(run: str) -> str:
    """The claim on `run` that holds; empty where there is none."""
    try:
        return read_bytes(join(run, OWNER)).decode()
    except NotFoundError:
        return ""


def check_claim(run: str, claim: str) -> None:
    """Raises RunTaken where another process has claimed `run` since."""
    owner = owner_of(run)
    if owner not in ("", claim):
        said = f"{run}: another process trains this run now, so this one has ended; let only one of them run"
        raise RunTaken(said, owner)


def save_checkpoint(checkpoint: Checkpoint, uri: str, check: Callable[[], None] = lambda: None) -> None:
    """Writes the folder `uri` (local or s3://); `checkpoint.json` last, so that a torn one is not one. `check` is
    called before anything is written, and again before that."""
    check()

    def tensors(found: dict[str, Tensor]) -> bytes:
        return save_tensors({k: v.detach().cpu().contiguous() for k, v in found.items()})

    write_bytes(join(uri, "model.safetensors"), tensors(checkpoint.weights))
    if checkpoint.optimizer is not None:
        write_bytes(join(uri, "optimizer.safetensors"), tensors(checkpoint.optimizer))
    about = {
        "format": FORMAT,
        "lawm": __version__,
        "kind": checkpoint.kind,
        "step": checkpoint.step,
        "cursor": checkpoint.cursor.to_json(),
        "encoder_fingerprint": checkpoint.encoder_fingerprint,
        "fingerprint": checkpoint.fingerprint,
        "parent": checkpoint.parent,
        "extra": checkpoint.extra,
        "metrics": checkpoint.metrics,
        "config": checkpoint.config.model_dump(),
    }
    check()
    write_bytes(join(uri, "checkpoint.json"), json.dumps(about, indent=1).encode())


def load_checkpoint(uri: str, optimizer: bool = False) -> Checkpoint:
    """Reads a checkpoint folder, or the newest checkpoint of a run folder.

    Raises LawmError: no checkpoint there, damaged, or written by another format.
    """
    folder = find_checkpoint(uri)
    about = read_about(folder)
    try:
        weights = load_tensors(read_bytes(join(folder, "model.safetensors")))
        moments = load_tensors(read_bytes(join(folder, "optimizer.safetensors"))) if optimizer else None
    except (ValueError, SafetensorError, NotFoundError) as error:
        raise LawmError(f"{folder}: damaged checkpoint ({str(error).splitlines()[0]})") from error
    checkpoint = Checkpoint(
        kind=about["kind"],
        config=parse_config(about["config"], f"{folder}/checkpoint.json"),
        step=about["step"],
        cursor=Cursor.from_json(about["cursor"]),
        weights=weights,
        optimizer=moments,
        encoder_fingerprint=about["encoder_fingerprint"],
        parent=about["parent"],
        extra=about["extra"],
        metrics=about["metrics"],
    )
    if checkpoint.fingerprint != about["fingerprint"]:
        raise LawmError(f"{folder}: damaged checkpoint (the weights do not have the hash that checkpoint.json names)")
    return checkpoint


def find_checkpoint(uri: str) -> str:
    """The checkpoint folder that `uri` is, or the newest one in the run folder that it is. Raises LawmError."""
    folder = uri if exists(join(uri, "checkpoint.json")) else newest_checkpoint(uri)
    if folder is None:
        raise LawmError(f"{uri}: no checkpoint there (a folder with checkpoint.json, or a run folder that holds one)")
    return folder


def read_about(uri: str) -> dict[str, Any]:
    """What `checkpoint.json` says, without reading the weights; `uri` as for `load_checkpoint`. Raises LawmError
    where it is damaged or of another format."""
    folder = find_checkpoint(uri)
    try:
        about = json.loads(read_bytes(join(folder, "checkpoint.json")))
        missing = sorted(NAMES - set(about)) if isinstance(about, dict) else sorted(NAMES)
        if missing:
            raise ValueError(f"checkpoint.json lacks {', '.join(missing)}")
        kinds = {
            "kind": str,
            "step": int,
            "cursor": str,
            "fingerprint": str,
            "extra": dict,
            "metrics": dict,
            "config": dict,
        }
        wrong = [name for name, kind in kinds.items() if not isinstance(about[name], kind)]
        if wrong:
            raise ValueError(f"checkpoint.json has another {', '.join(wrong)} than it should")
    except (ValueError, RecursionError) as error:
        raise LawmError(f"{folder}: damaged checkpoint ({str(error).splitlines()[0]})") from error
    if about["format"] != FORMAT:
        raise LawmError(f"{folder}: checkpoint format {about['format']}, this lawm reads {FORMAT}")
    return about


def checkpoint_folders(run: str) -> list[str]:
    """Finished checkpoints of a run folder, oldest first."""
    tail = "/checkpoint.json"
    found = [uri[: -len(tail)] for uri, _ in list_files(run, (".json",)) if uri.endswith(tail)] if exists(run) else []
    own = [u for u in found if step_of(u) is not None and "/" not in u[len(run.rstrip("/")) + 1 :]]
    return sorted(own, key=lambda u: step_of(u) or 0)


def step_of(uri: str) -> int | None:
    name = last_part(uri)
    return int(name[5:]) if name.startswith("step_") and name[5:].isdigit() else None


def run_of(uri: str) -> str:
    """The run folder of a checkpoint, given as that folder or as a run folder."""
    uri = uri.rstrip("/")
    return uri.rpartition("/")[0] if step_of(uri) is not None and "/" in uri else uri


def newest_checkpoint(run: str) -> str | None:
    found = checkpoint_folders(run)
    return found[-1] if found else None


def checkpoint_name(step: int) -> str:
    return f"step_{step:08d}"


def prune_checkpoints(run: str, keep: int, held: int | None = None) -> None:
    """Keeps the newest and the `keep - 1` best (lowest validation error) checkpoints of a run, and that of step
    `held`."""
    folders = checkpoint_folders(run)
    older = folders[:-1]

    def score(folder: str) -> tuple[float, int]:
        error = json.loads(read_bytes(join(folder, "checkpoint.json")))["metrics"].get("val_prediction", math.inf)
        return (error if math.isfinite(error) else math.inf, -(step_of(folder) or 0))  # of equals, the newer

    for folder in sorted(older, key=score)[keep - 1 :]:
        if step_of(folder) != held:
            _remove(folder)


def drop_checkpoints(run: str, beyond: int) -> None:
    """Removes the checkpoints of a run after step `beyond`, from which it goes on."""
    for folder in checkpoint_folders(run):
        if (step_of(folder) or 0) > beyond:
            _remove(folder)


def _remove(folder: str) -> None:
    delete(join(folder, "checkpoint.json"))  # no longer a checkpoint first
    delete(folder)  # with what a process that was killed had not finished


# ---------------------------------------------------------------- checkpoint -> model
def check_encoder(checkpoint: Checkpoint, model: LatentActionObjective, where: str) -> None:
    """Raises LawmError where the model's is not the encoder that the checkpoint was trained on (or from)."""
    found = model.encoder_fingerprint()
    if checkpoint.encoder_fingerprint and found != checkpoint.encoder_fingerprint:
        raise LawmError(
            f"{where} was trained on encoder {checkpoint.encoder_fingerprint}, this config builds {found}: "
            "the encoder's weights are not the same; give the same file with --set encoder.weights=PATH"
        )


def check_cache(cache: StateCache, config: Config, model: LatentActionObjective) -> None:
    """Raises LawmError where the cache does not hold the states that the model sees."""
    if model.fine_tuned:
        raise LawmError("no state cache holds the states of an encoder that was trained: give --index, not --cache")
    cache.check(config, model.encoder.fingerprint())


def check_free_of_the_past(cache: StateCache | None, what: str) -> None:
    """Raises LawmError where states have to be made of frames in another company than the cache's."""
    if cache is not None and cache.looks_back:
        raise LawmError(
            f"{what} encodes frames without those that came before them in the cache, and this encoder looks back in "
            "time: give --index, not --cache"
        )


BASELINES = {"deterministic": "deterministic", "unconstrained": "none"}
"""What a model is set beside, and the bottleneck that it is trained with."""


def check_baseline(model: Config, baseline: Config, uri: str, name: str) -> None:
    """Raises LawmError where `baseline` is not what `name` (of BASELINES) says, or where its errors and the model's are
    errors in different states. `model`: as it is measured, with the clips of now."""
    bottleneck = baseline.model.bottleneck.kind
    if bottleneck != BASELINES[name]:
        raise LawmError(
            f"--{name} {uri}: trained with model.bottleneck.kind = {bottleneck}; expected one trained with "
            f"{BASELINES[name]}"
        )
    kinds = [config.encoder.normalize_states for config in (model, baseline)]
    if kinds[0] != kinds[1] and "layer_norm" in kinds:
        raise LawmError(
            f"{uri}: encoder.normalize_states = {kinds[1]}, and the model's is {kinds[0]}: layer_norm cannot be "
            "undone, so their errors cannot be set side by side; train both with the same"
        )
    check_states_a_clip(baseline, model, uri)
    if any(config.fine_tune.target != "off" for config in (model, baseline)):
        raise LawmError(
            f"{uri}: its errors cannot be set beside the model's, because an encoder was trained (fine_tune.target) "
            "and their states are not the same; compare frozen encoders"
        )


def check_actions(uri: str, labels: Labels) -> None:
    """Raises LawmError where the checkpoint takes actions of another width than the labels have."""
    about = read_about(uri)
    bottleneck = parse_config(about["config"], uri).model.bottleneck
    width = about["extra"].get("action_dim") if about["kind"] in TAUGHT else None
    if about["kind"] == LatentActionObjective.kind and isinstance(bottleneck, TrueActions):
        width = bottleneck.action_dim
    if width is not None and width != labels.action_dim:
        raise LawmError(
            f"{uri} takes actions of {width} numbers, and the labels have {labels.action_dim}; give the labels that it "
            "was trained with"
        )


def config_in_use(trained: Config, asked: Config, uri: str) -> Config:
    """What a model was trained with; its clips, where its weights lie and how it is executed as `asked` now.

    Raises LawmError where anything else of the model is asked to be otherwise: a checkpoint's model is fixed. So is the
    greatest number of states in a clip: the world model has never seen later places in time.
    """
    fixed = ("model.", "encoder.", "data.clip.size")
    differ = [
        f"{k} = {theirs!r} there, {ours!r} now"
        for k, (theirs, ours) in differing_fields(trained, asked).items()
        if k.startswith(fixed) and k not in EXECUTION
    ]
    if differ:
        raise LawmError(f"{uri}: the model of a checkpoint cannot be changed ({'; '.join(differ[:3])})")
    check_states_a_clip(trained, asked, uri)
    data = trained.data.model_copy(update={"clip": asked.data.clip})
    return trained.model_copy(update={"data": data, "encoder": asked.encoder, "model": asked.model})


def check_states_a_clip(trained: Config, asked: Config, uri: str) -> None:
    """Raises LawmError where clips have more states than those of the model's training (spec section 1)."""
    theirs, ours = (states_per_clip(config.encoder, config.data.clip) for config in (trained, asked))
    if ours <= theirs:
        return
    clip = asked.data.clip
    repeated = f" and data.clip.duplicate = {clip.duplicate}" if clip.duplicate > 1 else ""
    raise LawmError(
        f"data.clip.frames = {clip.frames}{repeated} make {ours} states of a clip, and {uri} was trained on {theirs}: "
        f"it has never seen later ones; set data.clip.frames={clip.frames * theirs // ours} (for lawm plan, "
        f"plan.horizon to at most {theirs - 1}), or train on longer clips"
    )


def load_model(
    uri: str, encoder: Encoder | None = None, config: Config | None = None
) -> tuple[LatentActionObjective, Checkpoint]:
    """The latent action model of a checkpoint, in eval mode, on the CPU; as `config_in_use` says for a `config`."""
    checkpoint = load_checkpoint(uri)
    if checkpoint.kind != LatentActionObjective.kind:
        raise LawmError(f"{uri} holds a {checkpoint.kind}, not a latent action model")
    built = checkpoint.config if config is None else config_in_use(checkpoint.config, config, uri)
    objective = LatentActionObjective(built, encoder)
    if built.fine_tune.target != "off":
        objective.own_encoder()
    check_encoder(checkpoint, objective, uri)
    objective.load_kept({k: v for k, v in checkpoint.weights.items() if not k.startswith(LEARNING)}, uri)
    return objective.eval(), checkpoint


def _load_child(uri: str, model: LatentActionObjective, parent: Checkpoint, kind: str) -> Checkpoint:
    check_child(uri, kind, parent.fingerprint)
    return load_checkpoint(uri)


def check_child(uri: str, kind: str, model: str) -> None:
    """Raises LawmError where `uri` is not a controller or decoder (`kind`) of the model with that fingerprint."""
    about = read_about(uri)
    if about["kind"] != kind:
        raise LawmError(f"{uri} holds a {about['kind']}, not a {kind}")
    said = (about["parent"] or {}).get("fingerprint")
    if said != model:
        raise LawmError(
            f"{uri} was trained on another model ({said}) than the one given ({model}): lawm {kind} trains one of it"
        )


def load_controller(uri: str, model: LatentActionObjective, parent: Checkpoint) -> ControllerObjective:
    """The controller trained on that model; refused if it was trained on another."""
    checkpoint = _load_child(uri, model, parent, ControllerObjective.kind)
    objective = ControllerObjective(checkpoint.config, model, checkpoint.extra["action_dim"])
    objective.load_kept(checkpoint.weights, uri)
    return objective.eval()


def load_prior(uri: str, model: LatentActionObjective, parent: Checkpoint) -> PriorObjective:
    """The prior of that model's latents; refused if it was trained on another model."""
    checkpoint = _load_child(uri, model, parent, PriorObjective.kind)
    objective = PriorObjective(checkpoint.config, model)
    objective.load_kept(checkpoint.weights, uri)
    return objective.eval()


def load_policy(uri: str, model: LatentActionObjective, parent: Checkpoint) -> PolicyObjective:
    """The goal policy trained on that model's states; refused if it was trained on another model."""
    checkpoint = _load_child(uri, model, parent, PolicyObjective.kind)
    objective = PolicyObjective(checkpoint.config, model, checkpoint.extra["action_dim"])
    objective.load_kept(checkpoint.weights, uri)
    return objective.eval()


def load_decoder(uri: str, model: LatentActionObjective, parent: Checkpoint) -> DecoderObjective:
    """The decoder trained on that model; refused if it was trained on another."""
    checkpoint = _load_child(uri, model, parent, DecoderObjective.kind)
    config = checkpoint.config.model_copy(
        update={"decoder": checkpoint.config.decoder.model_copy(update={"lpips": 0.0})}
    )
    objective = DecoderObjective(config, model)
    objective.load_kept(checkpoint.weights, uri)
    return objective.eval()


def build_objective(
    config: Config,
    kind: str,
    parent: str | None = None,
    action_dim: int | None = None,
    encoder: Encoder | None = None,
) -> tuple[Objective, Checkpoint | None]:
    """The objective that a run trains, and the parent checkpoint that it stands on."""
    if kind == LatentActionObjective.kind:
        return build_latent_action(config, encoder), None
    if parent is None:
        raise LawmError(f"a {kind} needs --checkpoint, the latent action model that it belongs to")
    model, checkpoint = load_model(parent, config=config)
    if kind in TAUGHT:
        if action_dim is None:
            raise LawmError(f"a {kind} needs labelled clips: set data.labels")
        taught = ControllerObjective if kind == ControllerObjective.kind else PolicyObjective
        return taught(config, model, action_dim), checkpoint
    return (PriorObjective if kind == PriorObjective.kind else DecoderObjective)(config, model), checkpoint
