"""`cluster.yaml` is what Ray's own check takes."""

from __future__ import annotations

from pathlib import Path

import yaml

FILE = Path(__file__).parent.parent.parent / "cluster.yaml"


def test_rays_schema_accepts_cluster_yaml() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(FILE.read_text()))
    validate_config(config)
    assert config["available_node_types"][config["head_node_type"]]["resources"].get("GPU", 0) == 0


def test_nothing_listens_to_the_world() -> None:
    text = FILE.read_text()
    assert "0.0.0.0" not in text
    assert "RAY_AUTH_MODE=token" in text
