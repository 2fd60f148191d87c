"""cluster.yaml against Ray's own schema, deploy/ against Ray's own options, and both against the labels in the code."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.label_utils import parse_node_labels_string, validate_node_labels
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

from lawm.cluster.session import DECODE, HEAD, ROLE_LABEL, TRAIN

ROOT = Path(__file__).parents[2]
KUBERAY = ["kuberay-raycluster.yaml", "kuberay-rayjob.yaml"]


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_yaml_is_valid_for_ray(cluster: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    assert prepared["available_node_types"]["decode"]["max_workers"] == 16


def test_the_schema_notices_a_wrong_file(cluster: dict[str, Any]) -> None:
    cluster["available_node_types"]["train"]["label"] = {ROLE_LABEL: TRAIN}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(cluster))


def test_node_types_carry_the_labels_of_the_code(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert {name: kind["labels"] for name, kind in types.items()} == {
        role: {ROLE_LABEL: role} for role in (HEAD, DECODE, TRAIN)
    }
    assert cluster["head_node_type"] == HEAD
    for kind in types.values():
        validate_node_labels(kind["labels"])


def test_setup_uses_the_constraints(cluster: dict[str, Any]) -> None:
    (command,) = cluster["setup_commands"]
    (mount,) = cluster["file_mounts"]
    assert f"-c {mount}/constraints.txt" in command
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['docker']['image'].partition(':')[2].partition('-')[0]}" in pinned


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_labels_and_options(name: str) -> None:
    spec = yaml.safe_load((ROOT / "deploy" / name).read_text())["spec"]
    spec = spec.get("rayClusterSpec", spec)
    options = {option.lstrip("-") for parameter in scripts.start.params for option in parameter.opts}
    groups = {HEAD: spec["headGroupSpec"]} | {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {HEAD, DECODE, TRAIN}
    for role, group in groups.items():
        assert set(group["rayStartParams"]) <= options
        assert parse_node_labels_string(group["rayStartParams"]["labels"]) == {ROLE_LABEL: role}
    (container,) = groups[TRAIN]["template"]["spec"]["containers"]
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) >= 1
    assert f"ray=={spec['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
