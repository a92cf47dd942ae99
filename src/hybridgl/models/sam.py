"""SAM through segment_anything: load its weights with checks, and propose masks of images.

HybridGL takes its candidates from SAM ViT-H. The architecture and its weights are
segment_anything's; ``hybridgl.models.sam_generator`` runs them.

Source: Kirillov et al., "Segment Anything" (ICCV 2023).
Shapes: H, W image pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hybridgl.config import ProposalConfig
from hybridgl.devices import CPU_BATCHES, Batches
from hybridgl.errors import SettingError, WeightsError
from hybridgl.masks import Proposals
from hybridgl.models.sam_decoder import DecodedPoints, PointDecoder
from hybridgl.models.sam_encoder import encode, encoder_block
from hybridgl.models.sam_generator import MaskGenerator
from hybridgl.models.transformer import set_product_dtype
from hybridgl.weights.registry import SAM_FILES
from hybridgl.weights.states import read_state

__all__ = ["SAM_TYPES", "Sam", "build_tiny_sam", "image_and_point_bytes", "load_sam"]

_MASKS_PER_POINT = 3

_PIXEL_MEAN = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
_PIXEL_STD = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
"""ImageNet's, in values of pixels: the only tensors of a ``Sam`` that its weights do not hold."""

_ENCODER_STEM = "image_encoder.patch_embed.proj.weight"


def build_tiny_sam() -> Any:
    """Build segment_anything's ``Sam`` with 0.8 million parameters for 256 pixels, untrained."""
    from segment_anything import modeling

    side, patch, width = 256, 16, 64
    sam = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=side,
            patch_size=patch,
            embed_dim=96,
            depth=4,
            num_heads=3,
            out_chans=width,
            use_rel_pos=True,
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=width,
            image_embedding_size=(side // patch, side // patch),
            input_image_size=(side, side),
            mask_in_chans=4,
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=width,
            transformer=modeling.TwoWayTransformer(
                depth=2, embedding_dim=width, num_heads=4, mlp_dim=4 * width
            ),
            num_multimask_outputs=_MASKS_PER_POINT,
            iou_head_hidden_dim=width,
        ),
    )
    return sam.eval()


@dataclass(frozen=True, slots=True)
class _SamType:
    """Architecture: how to know its weights.

    Attributes:
        name: of the registry of segment_anything, or "tiny".
        width: of the image encoder.
        depth: blocks of the image encoder.
        grid: patches along each side of its input.
        embedding: channels of what it gives.
    """

    name: str
    width: int
    depth: int
    grid: int = 64
    embedding: int = 256

    @property
    def fix(self) -> str:
        """Word how to get its weights."""
        if self.name == "tiny":
            return "install hybridgl again, which bundles it"
        return f"download {SAM_FILES[self.name].url}"

    def build(self) -> Any:
        """Build segment_anything's ``Sam``, untrained."""
        if self.name == "tiny":
            return build_tiny_sam()
        from segment_anything import sam_model_registry

        return sam_model_registry[self.name]()


_TYPES = {
    known.name: known
    for known in (
        _SamType("vit_h", 1280, 32),
        _SamType("vit_l", 1024, 24),
        _SamType("vit_b", 768, 12),
        _SamType("tiny", 96, 4, grid=16, embedding=64),
    )
}

SAM_TYPES = tuple(_TYPES)
"""Names of the architectures."""

_IMAGE_COPIES, _POINT_COPIES = 20, 10
"""Copies that memory holds at once, by the shapes of the operations: of an image's tokens in the
encoder (half of them for the biases of attention), and of the embedded image for each point prompt
in the decoder."""


def image_and_point_bytes(sam_type: str) -> tuple[int, int]:
    """Return the memory, about, that an image takes in the encoder, and a prompt in the decoder."""
    known = _TYPES[sam_type]
    per_channel = 4 * known.grid**2
    return (
        _IMAGE_COPIES * per_channel * known.width,
        _POINT_COPIES * per_channel * known.embedding,
    )


class Sam:
    """SAM that proposes masks for images.

    Attributes:
        device: where the model computes.
    """

    def __init__(
        self,
        sam: Any,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compiles: bool = False,
        batches: Batches | None = None,
    ) -> None:
        self.device = torch.device(device)
        self._batches = batches or Batches(CPU_BATCHES)
        self._sam = sam.eval().requires_grad_(False).to(self.device)
        set_product_dtype(self._sam.image_encoder.modules(), dtype)
        self._encode: Callable[[Any, Tensor], Tensor] = encode
        self._decode: Callable[[PointDecoder, Tensor], DecodedPoints] = PointDecoder.decode
        if compiles:
            self._encode = partial(encode, run_block=torch.compile(encoder_block))
            self._decode = torch.compile(PointDecoder.decode)

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        sam_type: str,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        compiles: bool = False,
        batches: Batches | None = None,
    ) -> Sam:
        """Load weights.

        Args:
            path: one of the official ``.pth`` files, or any other that ``read_state`` reads, with
                the same entries (any float type; computed in float32).
            sam_type: one of ``SAM_TYPES``.
            device: where the model computes.
            dtype: number format of the image encoder's products.
            compiles: whether torch compiles the blocks of the encoder, and the decoder.
            batches: how many images and point prompts go together; None takes few.

        Raises:
            SettingError: unknown type.
            WeightsError: no such file; a file that cannot be read; weights of another
                architecture.
        """
        sam = load_sam(Path(path), sam_type)
        return cls(sam, device, dtype, compiles=compiles, batches=batches)

    def propose(self, image_HW3: NDArray[np.uint8], config: ProposalConfig) -> Proposals:
        """Propose masks of one image, in the order of SAM's automatic mask generator.

        Args:
            image_HW3: uint8 RGB, (H, W, 3).
            config: the generator's settings.

        Returns:
            The proposals; none where every mask was filtered out.

        Raises:
            ValueError: the image has another type or shape.
        """
        return self.submit([image_HW3], config)[0]()

    def submit(
        self, images: Sequence[NDArray[np.uint8]], config: ProposalConfig
    ) -> list[Callable[[], Proposals]]:
        """Do the device's part of proposing masks for several images.

        Args:
            images: uint8 RGB, (H, W, 3), of any sizes.
            config: the generator's settings.

        Returns:
            For every image, a function that does the host's part and returns its proposals; it
            may run in another thread.

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
        generator = MaskGenerator(
            self._sam, config, self.device, self._batches, self._encode, self._decode
        )
        return generator.submit(images)


def load_sam(path: Path, sam_type: str) -> Any:
    """Build segment_anything's ``Sam`` with the weights of a file, in float32, on the CPU.

    Arguments and errors are those of ``Sam.from_checkpoint``.
    """
    if sam_type not in SAM_TYPES:
        raise SettingError(
            f"Expected a SAM type among {', '.join(SAM_TYPES)}, got {sam_type!r}; choose one "
            f"of them."
        )
    expected = _TYPES[sam_type]
    state = read_state(
        path,
        (_ENCODER_STEM,),
        expected=f"weights of SAM {sam_type}",
        fix=expected.fix,
        fits=lambda some: _width_and_depth(some) == (expected.width, expected.depth),
    )
    _check_type(state, path, expected)
    with torch.device("meta"):  # ViT-H takes 8 s to draw random weights, which nobody wants
        sam = expected.build()
    _check_entries(state, sam.state_dict(), path, expected)
    sam.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    sam.pixel_mean, sam.pixel_std = _PIXEL_MEAN.clone(), _PIXEL_STD.clone()
    return sam


def _check_type(state: Mapping[str, Tensor], path: Path, expected: _SamType) -> None:
    """Tell the architectures apart by the image encoder's width and depth."""
    width, depth = _width_and_depth(state)
    if (width, depth) == (expected.width, expected.depth):
        return
    names = [
        known.name for known in _TYPES.values() if (known.width, known.depth) == (width, depth)
    ]
    if names:
        raise WeightsError(
            f"Expected weights of SAM {expected.name} in {path}, got those of {names[0]}; choose "
            f"--sam_type {names[0]}, or {expected.fix}."
        )
    raise WeightsError(
        f"Expected weights of SAM {expected.name} (width {expected.width}, {expected.depth} "
        f"blocks) in {path}, got width {width} and {depth} blocks; {expected.fix}."
    )


def _width_and_depth(state: Mapping[str, Tensor]) -> tuple[int, int]:
    """Read the size of the image encoder off the weights."""
    width = state[_ENCODER_STEM].shape[:1].numel()
    depth = len({name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")})
    return width, depth


def _check_entries(
    state: Mapping[str, Tensor], model: Mapping[str, Tensor], path: Path, expected: _SamType
) -> None:
    """Check that every entry of the model is there, with its shape, and no other one."""
    wrong = [f"{name} is missing" for name in model if name not in state]
    wrong += [f"{name} is not of this model" for name in state if name not in model]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in model.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        raise WeightsError(
            f"Expected the {len(model)} entries of SAM {expected.name} in {path}, got "
            f"{len(wrong)} wrong ones, first {wrong[0]}; {expected.fix}."
        )
