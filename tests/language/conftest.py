"""Tiny checkpoints of every family, saved once for the session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import full_model


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Family -> a folder with a tiny checkpoint of it; the model comes back by `full_model`."""
    folders: dict[str, Path] = {}

    def folder_of(family_name: str) -> Path:
        if family_name not in folders:
            folders[family_name] = tmp_path_factory.mktemp(family_name)
            full_model(family_name).save_pretrained(folders[family_name])
        return folders[family_name]

    return folder_of
