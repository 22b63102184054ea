"""nnU-Net's plain convolutional U (Isensee et al. 2021, doi:10.1038/s41592-020-01008-z), as MONAI's ``DynUNet`` has it.

Axes: ``B`` batch, ``M`` modalities, ``C`` output channels, ``I J K`` voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from medvisionllama.errors import InputError
from medvisionllama.models.attention import Shape

# nnU-Net's figures: features double from level to level up to this many, and no edge is pooled below four voxels.
MOST_FEATURES = 320
SMALLEST_EDGE = 4
FEWEST_LEVELS = 3  # MONAI's


@dataclass(frozen=True)
class DynUNetConfig:
    """nnU-Net's topology for a window; the defaults are nnU-Net's own.

    Attributes:
        in_channels: ``M``.
        out_channels: ``C``.
        input_size: Voxels of the window along I, J, K; it decides how often each axis is pooled.
        base_features: Channels at full resolution, 32 in nnU-Net.
        norm: What normalises the convolutions.
        deep_supervision: Whether coarser levels, all but the two coarsest, give logits too while training; set by the
            recipe.
        kind: Tells this configuration from others where it is stored.
    """

    in_channels: int = 1
    out_channels: int = 1
    input_size: Shape = (128, 128, 128)
    base_features: int = 32
    norm: Literal["instance", "batch"] = "instance"
    deep_supervision: bool = False
    kind: Literal["dynunet"] = "dynunet"

    def __post_init__(self) -> None:
        object.__setattr__(self, "input_size", tuple(self.input_size))
        if min(self.in_channels, self.out_channels, self.base_features, *self.input_size) < 1:
            raise ValueError("channels, features and sizes are at least 1")
        if self.deep_supervision and len(self.strides) < 3:
            raise ValueError(f"deep supervision needs a window that is pooled twice, not {self.input_size}")

    @property
    def strides(self) -> tuple[Shape, ...]:
        """Of each level, the first at full resolution: an axis is halved while it is even and 4 voxels remain.

        An odd factor ends it earlier than in nnU-Net, which pads its patch until it can be halved: 40 is halved three
        times, 44 twice, where nnU-Net would make it 48 and halve it three times.
        """
        sizes, levels = list(self.input_size), [(1, 1, 1)]
        while any(_poolable(size) for size in sizes):
            stride = [2 if _poolable(size) else 1 for size in sizes]
            sizes = [size // step for size, step in zip(sizes, stride, strict=True)]
            levels.append((stride[0], stride[1], stride[2]))
        return tuple(levels)

    @property
    def features(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(min(MOST_FEATURES, self.base_features * 2**level) for level in range(len(self.strides)))

    @property
    def full_size_outputs(self) -> int:
        """How many logits of the window's size there are while training: MONAI stretches the coarser ones to it."""
        return 1 + max(1, len(self.strides) - 3) if self.deep_supervision else 1


class DynUNet(nn.Module):
    """MONAI's network under the names that trainings and pages look for.

    Args:
        config: What to build.

    Raises:
        InputError: MONAI is not installed, or no axis of the window can be halved twice.
    """

    def __init__(self, config: DynUNetConfig) -> None:
        super().__init__()
        try:
            from monai.networks.nets.dynunet import DynUNet as MonaiDynUNet
        except ImportError as error:
            raise InputError("DynUNet comes with MONAI", mend="pip install 'medvisionllama[peers]'") from error
        if len(config.strides) < FEWEST_LEVELS:
            raise InputError(
                "DynUNet's window is pooled once at most",
                got=str(config.input_size),
                expected="an edge of at least 16 voxels that is a multiple of 4",
                mend="Choose another window, or another network.",
            )
        strides = [list(stride) for stride in config.strides]
        self.config = config
        self.network = MonaiDynUNet(
            spatial_dims=3,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            kernel_size=[[3, 3, 3]] * len(strides),
            strides=strides,
            upsample_kernel_size=strides[1:],
            filters=list(config.features),
            norm_name=("INSTANCE", {"affine": True}) if config.norm == "instance" else ("BATCH", {}),
            deep_supervision=config.deep_supervision,
            deep_supr_num=max(1, len(strides) - 3),
        )

    @property
    def block(self) -> None:
        """It has no language block."""
        return

    def parts(self) -> dict[str, nn.Module]:
        """Its stages in the order of the flow."""
        net = self.network
        down = {f"level {level}": part for level, part in enumerate([net.input_block, *net.downsamples])}
        up = {f"up to level {len(net.upsamples) - 1 - n}": part for n, part in enumerate(net.upsamples)}
        return down | {"bottom": net.bottleneck} | up | {"output": net.output_block}

    def left_out_of_files(self) -> set[str]:
        """Names in ``state_dict`` that no file holds: MONAI lists every part a second time where it chains them."""
        return {name for name in self.state_dict() if name.startswith("network.skip_layers.")}

    def forward(self, image_BMIJK: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Logits ``(B,C,I,J,K)`` of an image whose sizes the strides divide.

        While training with deep supervision a tuple, finest first; MONAI stretches the coarser ones to full size.
        """
        logits: Tensor = self.network(image_BMIJK)
        return logits.unbind(1) if logits.ndim == 6 else logits


def _poolable(size: int) -> bool:
    return size % 2 == 0 and size // 2 >= SMALLEST_EDGE
