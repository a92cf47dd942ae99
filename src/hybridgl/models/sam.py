"""SAM: loading its weights with checks, and masks of images.

HybridGL takes its candidates from SAM ViT-H (Kirillov et al., "Segment Anything", ICCV 2023). The
architecture and its weights are segment_anything's; ``hybridgl.models.sam_generator`` runs them.

Shapes: N proposals, H, W image pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything import sam_model_registry
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor

from hybridgl.config import ProposalConfig
from hybridgl.errors import HybridGLError
from hybridgl.masks import Proposals
from hybridgl.models.sam_encoder import encode
from hybridgl.models.sam_generator import MaskGenerator
from hybridgl.models.transformer import set_product_dtype
from hybridgl.weights.registry import SAM_FILES

__all__ = ["SAM_TYPES", "SamProposer", "build_tiny_sam"]

_MASKS_PER_POINT = 3

_ENCODER_STEM = "image_encoder.patch_embed.proj.weight"


def build_tiny_sam() -> Sam:
    """SAM's architecture with 0.8 million parameters for images of 256 pixels, untrained."""
    side, patch, width = 256, 16, 64
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=96,
            depth=4,
            num_heads=3,
            out_chans=width,
            use_rel_pos=True,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side // patch, side // patch),
            input_image_size=(side, side),
            mask_in_chans=4,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=width, num_heads=4, mlp_dim=4 * width
            ),
            num_multimask_outputs=_MASKS_PER_POINT,
            iou_head_hidden_dim=width,
        ),
    )
    return sam.eval()


@dataclass(frozen=True, slots=True)
class _SamType:
    """An architecture: how to build it and how to know its weights."""

    build: Callable[[], Sam]
    width: int
    """Of the image encoder."""
    depth: int
    """Blocks of the image encoder."""
    source: str
    """Where its weights come from, as an instruction."""


def _official(sam_type: str, width: int, depth: int) -> _SamType:
    return _SamType(
        sam_model_registry[sam_type], width, depth, f"download {SAM_FILES[sam_type].url}"
    )


_REGISTRY: dict[str, _SamType] = {
    "vit_h": _official("vit_h", 1280, 32),
    "vit_l": _official("vit_l", 1024, 24),
    "vit_b": _official("vit_b", 768, 12),
    "tiny": _SamType(build_tiny_sam, 96, 4, "install hybridgl again, which bundles it"),
}

SAM_TYPES = tuple(_REGISTRY)
"""Names of the architectures."""


class SamProposer:
    """Proposes masks for images.

    Attributes:
        device: where the model computes.
        dtype: number format of the image encoder's products; the mask decoder has float32.
    """

    def __init__(
        self,
        sam: Sam,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compiles: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self._sam = sam.eval().requires_grad_(False).to(self.device)
        set_product_dtype(self._sam.image_encoder.modules(), dtype)
        self._encode = torch.compile(encode) if compiles else encode

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        sam_type: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compiles: bool = False,
    ) -> SamProposer:
        """Load weights.

        Args:
            path: one of the official ``.pth`` files, or a ``.npz`` with the same entries as plain
                arrays (any float type; computed in float32).
            sam_type: one of ``SAM_TYPES``.
            device: where the model computes.
            dtype: number format of the image encoder's products.
            compiles: whether torch compiles the image encoder.

        Raises:
            HybridGLError: unknown type; no such file; a file that cannot be read; weights of another
                architecture.
        """
        if sam_type not in _REGISTRY:
            raise HybridGLError(
                f"Expected a SAM type among {', '.join(SAM_TYPES)}, got {sam_type!r}."
            )
        path = Path(path)
        state = _read_state(path, sam_type)
        _check_type(state, path, sam_type)
        sam = _REGISTRY[sam_type].build()
        _check_entries(state, sam.state_dict(), path, sam_type)
        sam.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
        return cls(sam, device, dtype, compiles=compiles)

    def propose(self, image_HW3: NDArray[np.uint8], config: ProposalConfig) -> Proposals:
        """Masks of one image, in the order of SAM's automatic mask generator.

        Args:
            image_HW3: uint8 RGB, (H, W, 3).
            config: the generator's settings.

        Returns:
            The proposals; none where every mask was filtered out.

        Raises:
            ValueError: the image has another type or shape.
        """
        return self.begin([image_HW3], config)[0]()

    def begin(
        self, images: Sequence[NDArray[np.uint8]], config: ProposalConfig
    ) -> list[Callable[[], Proposals]]:
        """The device's part of proposing masks for several images.

        Args:
            images: uint8 RGB, (H, W, 3), of any sizes.
            config: the generator's settings.

        Returns:
            For every image a function that does the host's part, in any thread.

        Raises:
            ValueError: an image has another type or shape.
        """
        for image_HW3 in images:
            is_rgb = image_HW3.ndim == 3 and image_HW3.shape[2] == 3 and image_HW3.size > 0
            if image_HW3.dtype != np.uint8 or not is_rgb:
                raise ValueError(
                    f"Expected image_HW3 to be uint8 of shape (H, W, 3), got {image_HW3.dtype} of "
                    f"shape {image_HW3.shape}; convert the image to 8-bit RGB."
                )
        return MaskGenerator(self._sam, config, self.device, self._encode).begin(images)


def _read_state(path: Path, sam_type: str) -> dict[str, Tensor]:
    source = _REGISTRY[sam_type].source
    if not path.is_file():
        raise HybridGLError(
            f"Expected weights of SAM {sam_type} at {path}, found no such file: {source}."
        )
    try:
        if path.suffix == ".npz":
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                state = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # a damaged file can fail in any way inside zip, pickle or NumPy
        raise HybridGLError(
            f"Expected weights of SAM {sam_type} in {path}, but the file cannot be read "
            f"({type(error).__name__}); it may be cut short: {source}."
        ) from error
    tensors = isinstance(state, Mapping) and all(isinstance(v, Tensor) for v in state.values())
    if not tensors or _ENCODER_STEM not in state:
        raise HybridGLError(
            f"Expected weights of SAM {sam_type} in {path}, found something else "
            f"(no {_ENCODER_STEM} in it): {source}."
        )
    return dict(state)


def _check_type(state: Mapping[str, Tensor], path: Path, sam_type: str) -> None:
    """Tell the architectures apart by the image encoder's width and depth."""
    width = state[_ENCODER_STEM].shape[:1].numel()
    depth = len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})
    expected = _REGISTRY[sam_type]
    if (width, depth) == (expected.width, expected.depth):
        return
    looks = [name for name, t in _REGISTRY.items() if (t.width, t.depth) == (width, depth)]
    if looks:
        raise HybridGLError(
            f"Expected weights of SAM {sam_type} in {path}, found those of {looks[0]}: "
            f"choose SAM type {looks[0]} or {expected.source}."
        )
    raise HybridGLError(
        f"Expected weights of SAM {sam_type} (width {expected.width}, {expected.depth} blocks) in "
        f"{path}, found width {width} and {depth} blocks: {expected.source}."
    )


def _check_entries(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path, sam_type: str
) -> None:
    """Every entry of the model is there, with its shape, and no other one."""
    image_errors = [f"{name} is missing" for name in expected if name not in state]
    image_errors += [f"{name} is not of this model" for name in state if name not in expected]
    image_errors += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if image_errors:
        raise HybridGLError(
            f"Expected the {len(expected)} entries of SAM {sam_type} in {path}, found "
            f"{len(image_errors)} wrong, first: {image_errors[0]}; {_REGISTRY[sam_type].source}."
        )
