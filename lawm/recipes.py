"""Whole configs by name; recipes derive from one another."""

from collections.abc import Callable

from lawm.config import (
    AttentionController,
    BottleneckConfig,
    ClipSpec,
    ClusterConfig,
    Config,
    ConfigError,
    ControllerConfig,
    DataConfig,
    DecoderConfig,
    Discrete,
    EvaluateConfig,
    MlpController,
    MlpIDM,
    ModelConfig,
    Noisy,
    OptimizerConfig,
    PixelsEncoder,
    PlanConfig,
    PolicyConfig,
    PriorConfig,
    Sparse,
    TimmEncoder,
    TrainConfig,
    TransformerIDM,
    VJepa2Encoder,
    WorldModelConfig,
)


def _vit(width: int, depth: int, heads: int) -> WorldModelConfig:
    return WorldModelConfig(width=width, depth=depth, heads=heads)


def tiny() -> Config:
    """For tests: seconds on one core, no weights."""
    return Config(
        recipe="tiny",
        data=DataConfig(clip=ClipSpec(frames=4, size=32), val_fraction=0.25),
        encoder=PixelsEncoder(patch=8),
        model=ModelConfig(
            latent_dim=8,
            idm=TransformerIDM(width=32, depth=1, heads=2, join="channels"),
            bottleneck=Noisy(beta=1e-4),
            world_model=WorldModelConfig(width=32, depth=2, heads=2, residual=True),
        ),
        train=TrainConfig(steps=12, batch=4, log_every=2, checkpoint_every=4),
        controller=ControllerConfig(
            model=AttentionController(width=32, depth=1, heads=2),
            train=TrainConfig(steps=10, batch=4, checkpoint_every=10),
        ),
        prior=PriorConfig(
            model=AttentionController(width=32, depth=1, heads=2),
            flow_steps=2,
            train=TrainConfig(steps=10, batch=4, checkpoint_every=10),
        ),
        policy=PolicyConfig(width=32, depth=1, heads=2, train=TrainConfig(steps=10, batch=4, checkpoint_every=10)),
        decoder=DecoderConfig(width=32, depth=1, heads=2, lpips=0.0, train=TrainConfig(steps=10, batch=4)),
        evaluate=EvaluateConfig(clips=16, batch=8, bootstrap=200),
        plan=PlanConfig(preset="custom", episodes=4, horizon=2, samples=8, elites=2, iterations=2),
    )


def demo() -> Config:
    """PushT and a few natural videos on two cores, with EfficientNet-Lite0 as the encoder."""
    optimizer = OptimizerConfig(muon_lr=0.02, adamw_lr=1e-3)
    taught = TrainConfig(steps=300, batch=16, checkpoint_every=300)
    return Config(
        recipe="demo",
        data=DataConfig(clip=ClipSpec(frames=4, size=112)),
        encoder=TimmEncoder(stage=3, normalize_states="channel"),
        model=ModelConfig(
            latent_dim=32,
            idm=TransformerIDM(width=128, depth=1, heads=4, mlp_ratio=2, join="channels"),
            bottleneck=Noisy(beta=3e-5),
            world_model=WorldModelConfig(width=128, depth=3, heads=4, mlp_ratio=2, residual=True),
        ),
        optimizer=OptimizerConfig(muon_lr=0.03, adamw_lr=1e-3),
        train=TrainConfig(steps=660, batch=16, log_every=10, checkpoint_every=330),
        controller=ControllerConfig(
            model=AttentionController(width=128, depth=2, heads=4),
            latents="standardised",
            optimizer=optimizer,
            train=taught,
        ),
        prior=PriorConfig(
            model=AttentionController(width=128, depth=2, heads=4),
            optimizer=optimizer,
            train=taught,
        ),
        policy=PolicyConfig(
            width=128,
            depth=2,
            heads=4,
            optimizer=optimizer,
            train=taught,
        ),
        decoder=DecoderConfig(
            width=128,
            depth=2,
            heads=4,
            lpips=0.0,
            optimizer=OptimizerConfig(adamw_lr=3e-3, weight_decay=0.01),
            train=TrainConfig(steps=160, batch=8, checkpoint_every=160),
        ),
        evaluate=EvaluateConfig(clips=256, batch=32),
        plan=PlanConfig(preset="custom", episodes=40, horizon=3, samples=64, elites=10, iterations=5),
        cluster=ClusterConfig(encode_actors=2, evaluate_actors=2),
    )


def pusht() -> Config:
    """PushT in closed loop on two cores (`benchmarks.pusht`): two states a second, as far ahead as the goal is, 2.5 s.
    An action is a target that holds for half a second, five of the environment's steps."""
    base = demo()
    model = base.model.model_copy(update={"bottleneck": Noisy(beta=1e-5)})
    taught = TrainConfig(steps=1500, batch=32, checkpoint_every=500)
    return base.model_copy(
        update={
            "recipe": "pusht",
            "data": DataConfig(clip=ClipSpec(frames=6, fps=2.0, size=112), val_fraction=0.05),
            "model": model,
            "train": TrainConfig(steps=4000, batch=32, log_every=50, checkpoint_every=500),
            "controller": base.controller.model_copy(
                update={"model": AttentionController(width=128, depth=1, heads=4), "train": taught}
            ),
            "prior": base.prior.model_copy(update={"train": taught}),
            "policy": base.policy.model_copy(update={"train": taught}),
            "plan": PlanConfig(
                preset="custom",
                episodes=50,
                goal_after_s=2.5,
                budget_s=5.0,
                replan_after_s=0.5,
                arrive=True,
                horizon=5,
                samples=64,
                elites=10,
                iterations=6,
                cost="mse",
                select="elite_mean",
            ),
        }
    )


def small() -> Config:
    """One GPU, a few hours: ViT-S world model on 224-pixel clips."""
    base = paper_sparse()
    return base.model_copy(
        update={
            "recipe": "small",
            "data": DataConfig(clip=ClipSpec(frames=8, size=224)),
            "encoder": TimmEncoder(model="vit_small_patch14_dinov2.lvd142m", weights="pretrained"),
            "model": ModelConfig(
                idm=TransformerIDM(width=384, depth=4, heads=6),
                bottleneck=Noisy(beta=5e-5),
                world_model=_vit(384, 12, 6),
            ),
            "train": TrainConfig(steps=10_000, batch=64),
            "decoder": DecoderConfig(width=384, depth=12, heads=6, train=TrainConfig(steps=10_000, batch=64)),
            "cluster": ClusterConfig(gpus_per_worker=1, cpus_per_worker=4),
        }
    )


def paper_sparse() -> Config:
    """The paper's setting (section 4), sparse at lambda_l1 = 0.01: V-JEPA 2-L, a ViT-L world model."""
    return Config(
        recipe="paper_sparse",
        data=DataConfig(clip=ClipSpec(frames=16, fps=4.0, size=256)),
        encoder=VJepa2Encoder(size="L"),
        model=ModelConfig(
            latent_dim=128,
            idm=TransformerIDM(width=1024, depth=4, heads=16),
            bottleneck=Sparse(lambda_l1=0.01),
            world_model=_vit(1024, 24, 16),
        ),
        cluster=ClusterConfig(workers=64, gpus_per_worker=1, cpus_per_worker=4, use_labels=True),
    )


def _with_bottleneck(config: Config, recipe: str, bottleneck: BottleneckConfig) -> Config:
    return config.model_copy(
        update={"recipe": recipe, "model": config.model.model_copy(update={"bottleneck": bottleneck})}
    )


def paper_noisy() -> Config:
    """The paper's noisy latents at beta = 5e-5."""
    return _with_bottleneck(paper_sparse(), "paper_noisy", Noisy(beta=5e-5))


def paper_discrete() -> Config:
    """The paper's largest codebook, 32768."""
    return _with_bottleneck(paper_sparse(), "paper_discrete", Discrete(codebook_size=32768))


def _of_size(recipe: str, world_model: WorldModelConfig) -> Config:
    base = paper_noisy()
    return base.model_copy(
        update={"recipe": recipe, "model": base.model.model_copy(update={"world_model": world_model})}
    )


def paper_vit_s() -> Config:
    """The paper's noisy setting with a ViT-S world model (its scaling over model size, figure 12)."""
    return _of_size("paper_vit_s", _vit(384, 12, 6))


def paper_vit_b() -> Config:
    """The same with a ViT-B world model."""
    return _of_size("paper_vit_b", _vit(768, 12, 12))


def paper_vit_h() -> Config:
    """The same with a ViT-H world model; its activations are computed again in the backward pass."""
    huge = _vit(1280, 32, 16).model_copy(update={"activation_checkpointing": True})
    return _of_size("paper_vit_h", huge)


def report_sparse() -> Config:
    """The report's setting: ViT-B, 8 frames at 224, 3-layer MLP IDM, action dropout 0.15, lambda_l1 0.1.
    Its encoder is a per-frame V-JEPA 2-B; the one B that has been released is 2.1's."""
    return Config(
        recipe="report_sparse",
        data=DataConfig(clip=ClipSpec(frames=8, fps=4.0, size=224), val_fraction=0.02),
        encoder=VJepa2Encoder(size="B", version="2.1", branch="ema_encoder", causality="duplicate"),
        model=ModelConfig(
            latent_dim=128,
            idm=MlpIDM(hidden=1024, layers=3),
            bottleneck=Sparse(lambda_l1=0.1, hinge="norm"),
            world_model=_vit(768, 12, 12),
            action_dropout=0.15,
        ),
        optimizer=OptimizerConfig(muon_lr=8e-3, adamw_lr=3e-4),
        train=TrainConfig(steps=10_000, batch=256),
        controller=ControllerConfig(model=MlpController(), train=TrainConfig(steps=10_000, batch=256)),
        cluster=ClusterConfig(gpus_per_worker=1, cpus_per_worker=8),
    )


def report_noisy() -> Config:
    """The report's noisy latents, high capacity: beta = 1e-3."""
    return _with_bottleneck(report_sparse(), "report_noisy", Noisy(beta=1e-3))


def report_discrete() -> Config:
    """The report's larger codebook, 64."""
    return _with_bottleneck(report_sparse(), "report_discrete", Discrete(codebook_size=64))


RECIPES: dict[str, Callable[[], Config]] = {
    f.__name__: f
    for f in (
        tiny,
        demo,
        pusht,
        small,
        paper_sparse,
        paper_noisy,
        paper_discrete,
        paper_vit_s,
        paper_vit_b,
        paper_vit_h,
        report_sparse,
        report_noisy,
        report_discrete,
    )
}


def recipe(name: str) -> Config:
    """The recipe of that name; raises ConfigError listing the names that exist."""
    if name not in RECIPES:
        raise ConfigError(f"--recipe {name}: no such recipe. There are: {', '.join(RECIPES)}")
    return RECIPES[name]()
