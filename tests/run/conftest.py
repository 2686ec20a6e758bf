"""A configuration file for jobs."""

import pytest

from dinov2.utils.config import to_yaml


@pytest.fixture
def recipe(small, tmp_path):
    """A configuration of two steps."""
    path = tmp_path / "recipe.yaml"
    path.write_text(to_yaml(small(train={"max_steps": 2})))
    return path
