"""Every knob: recipes, --set, what is refused and what the message says."""

import json

import pytest
from pydantic import ValidationError

from lawm.config import Config, ConfigError, PlanConfig, leaf_fields, override, parse_config
from lawm.recipes import RECIPES, recipe, tiny


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_survive_json(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert parse_config(json.loads(json.dumps(config.model_dump())), "here") == config


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [  # Garrido et al. 2026, section 4 and appendix A; Yang 2026, table of hyperparameters
        ("paper_sparse", "optimizer.muon_lr", 0.02),
        ("paper_sparse", "optimizer.adamw_lr", 6.25e-4),
        ("paper_sparse", "optimizer.weight_decay", 0.04),
        ("paper_sparse", "optimizer.warmup", 0.1),
        ("paper_sparse", "train.batch", 1024),
        ("paper_sparse", "train.steps", 30_000),
        ("paper_sparse", "data.clip.frames", 16),
        ("paper_sparse", "data.clip.fps", 4.0),
        ("paper_sparse", "data.clip.size", 256),
        ("paper_sparse", "model.latent_dim", 128),
        ("paper_sparse", "model.bottleneck.lambda_v", 0.1),
        ("paper_sparse", "model.bottleneck.lambda_c", 0.001),
        ("paper_sparse", "model.bottleneck.lambda_m", 0.1),
        ("paper_sparse", "model.bottleneck.lambda_l2", 1.0),
        ("paper_sparse", "model.world_model.depth", 24),
        ("paper_sparse", "model.action_dropout", 0.0),
        ("paper_sparse", "controller.optimizer.muon_lr", 0.0),
        ("paper_sparse", "controller.optimizer.adamw_lr", 1e-3),
        ("paper_sparse", "controller.train.batch", 256),
        ("paper_sparse", "controller.train.steps", 3000),
        ("paper_sparse", "decoder.train.steps", 90_000),
        ("paper_sparse", "decoder.train.batch", 512),
        ("paper_sparse", "decoder.optimizer.adamw_lr", 3e-4),
        ("paper_sparse", "decoder.optimizer.weight_decay", 0.01),
        ("paper_discrete", "model.bottleneck.codebook_size", 32768),
        ("paper_discrete", "model.bottleneck.commitment", 0.25),
        ("report_sparse", "optimizer.muon_lr", 8e-3),
        ("report_sparse", "model.action_dropout", 0.15),
        ("report_sparse", "model.bottleneck.hinge", "norm"),
        ("report_sparse", "model.idm.kind", "mlp"),
        ("report_sparse", "data.clip.frames", 8),
        ("report_discrete", "model.bottleneck.codebook_size", 64),
        ("paper_noisy", "plan.horizon", 3),
        ("paper_noisy", "plan.samples", 300),
        ("paper_noisy", "plan.iterations", 15),
    ],
)
def test_recipes_hold_the_documents_settings(name: str, path: str, value: object) -> None:
    assert dict(leaf_fields(recipe(name)))[path] == value


def test_override_parses_what_is_typed() -> None:
    config = tiny()
    for path, typed, found in [
        ("train.steps", "7", 7),
        ("optimizer.adamw_lr", "1e-4", 1e-4),
        ("data.index", "s3://b/i.parquet", "s3://b/i.parquet"),
        ("data.index", "null", None),
        ("model.world_model.residual", "false", False),
        ("data.clips_per_video", "duration", "duration"),
        ("data.clips_per_video", "3", 3),
        ("optimizer.betas", "[0.8, 0.9]", (0.8, 0.9)),
        ("data.keys", "a=b*", "a=b*"),
    ]:
        changed = override(config, path, typed)
        assert dict(leaf_fields(changed))[path] == found
        assert {k for k, v in leaf_fields(changed) if dict(leaf_fields(config)).get(k) != v} <= {path}
    assert config == tiny()


def test_setting_a_kind_switches_to_that_variants_defaults() -> None:
    sparse = override(tiny(), "model.bottleneck.kind", "sparse")
    assert sparse.model.bottleneck.model_dump()["lambda_l1"] == 0.01
    again = override(override(sparse, "model.bottleneck.lambda_l1", "0.5"), "model.bottleneck.kind", "sparse")
    assert again.model.bottleneck.model_dump()["lambda_l1"] == 0.5  # the same kind changes nothing
    whole = override(tiny(), "model.bottleneck", '{"kind": "discrete", "codebook_size": 16}')
    assert whole.model.bottleneck.model_dump()["codebook_size"] == 16


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "train.stepz",
            "3",
            r"train has no field 'stepz'; did you mean 'steps'\? Valid fields: batch, checkpoint_every",
        ),
        ("zzz", "3", "config has no field 'zzz'. Valid fields: cluster, controller"),
        ("train.steps.more", "3", "train.steps is a plain value, it has no field 'more'"),
        ("train.steps", "0", r"train.steps: Input should be greater than or equal to 1 \(got 0\)"),
        ("train.steps", "many", r"valid integer.*got 'many'"),
        ("optimizer.adamw_lr", "NaN", "finite number"),
        ("model.bottleneck.kind", "sparce", "sparce.*'sparse'"),
        ("model.bottleneck.lambda_l1", "1", "bottleneck has no field 'lambda_l1'.*Valid fields: beta, kind"),
        ("data.clip.crop", "left", "'center' or 'random_resized'"),
        ("plan.elites", "99", "elites = 99 exceeds samples = 8"),
        ("", "3", "has no field ''"),
    ],
)
def test_a_mistake_is_one_line(path: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        override(tiny(), path, value)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"no such recipe\. There are: tiny, demo"):
        recipe("big")


def test_configs_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError):
        tiny().train.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Config(unknown=1)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        PlanConfig(samples=5, elites=6)
