"""MedVisionLlama: 3D medical image segmentation through a frozen language-model block.

Research software, not a medical device.

    import medvisionllama as mvl
    mvl.load("RUN").segment("image.nii.gz")
    mvl.score("prediction.nii.gz", "reference.nii.gz", tolerance_mm=1.0)
    mvl.build(mvl.ModelConfig(out_channels=3))

Nothing heavy is imported until it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["BlockConfig", "InputError", "MiddleConfig", "ModelConfig", "Target", "Volume", "build", "load", "score"]

_HOMES = {
    "BlockConfig": "medvisionllama.language.block",
    "InputError": "medvisionllama.errors",
    "MiddleConfig": "medvisionllama.models.middle",
    "ModelConfig": "medvisionllama.models.medvisionllama",
    "Target": "medvisionllama.evaluate",
    "Volume": "medvisionllama.geometry",
    "build": "medvisionllama.models.medvisionllama",
    "load": "medvisionllama.segment",
    "score": "medvisionllama.evaluate",
}

if TYPE_CHECKING:
    from medvisionllama.errors import InputError
    from medvisionllama.evaluate import Target, score
    from medvisionllama.geometry import Volume
    from medvisionllama.language.block import BlockConfig
    from medvisionllama.models.medvisionllama import ModelConfig, build
    from medvisionllama.models.middle import MiddleConfig
    from medvisionllama.segment import load


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
