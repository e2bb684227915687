"""MobileCLIP, and other pairs of towers as open_clip saves them: a retriever by the library that holds it.

open_clip brings torchvision along, so it is no part of the extra `export`; it is imported when a folder asks
for it. The towers are its own. Trunks that were trained with parallel branches (MobileCLIP's) are folded
into one path by timm, once, before they are exported.
"""

from __future__ import annotations

import copy
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tellapart.errors import BackendError, CheckpointError, MissingExtraError
from tellapart.manifest import Preprocessing
from tellapart_export.graphs import ScaledPixels, text_graph, vision_graph
from tellapart_export.hugging_face import check_finite, identify, read_licence
from tellapart_export.subject import Subject
from tellapart_export.words import TEXTS, check_words, device_tokenizer, read_words

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"

_PAD_ID = 0  # what its tokenizer fills a text up with, and MobileCLIP's text tower looks at
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_RESIZES = {"shortest": "crop", "squash": "squash"}
_ELSEWHERE = ("hf_model_name", "hf_tokenizer_name")  # towers of transformers, with words of their own


class VisionGraph(nn.Module):
    """Pixels -> the image's unit row."""

    def __init__(self, tower: nn.Module, pixels: ScaledPixels) -> None:
        """Take an image tower."""
        super().__init__()
        self.pixels, self.tower = pixels, tower

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> embedding (b, E)."""
        return F.normalize(self.tower(self.pixels(pixels)), dim=-1)


class TextGraph(nn.Module):
    """Token ids -> the text's unit row.

    The towers were trained on texts filled up to a fixed length, and those without a causal mask look at the
    filling, so it happens here.
    """

    def __init__(self, model: Any, *, length: int, end_id: int) -> None:
        """Take a network; `length` is what a text is filled up to, `end_id` its largest id."""
        super().__init__()
        self.model, self.length, self.end_id = model, length, end_id

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (b, T), marks included, filled up behind the end mark with anything -> embedding (b, E)."""
        found: Tensor = self.model.encode_text(_filled(ids, self.length, self.end_id), normalize=True)
        return found


def _filled(ids: Tensor, length: int, end_id: int) -> Tensor:
    """(b, T) -> (b, length), nothing but padding behind the first end mark."""
    ended = (ids == end_id).int().cumsum(-1) - (ids == end_id).int()
    filling = torch.full((ids.shape[0], length), _PAD_ID, dtype=torch.int64)
    return torch.cat([torch.where(ended > 0, _PAD_ID, ids), filling], 1)[:, :length]


def open_checkpoint(folder: Path) -> Subject:
    """The retriever in a folder, CLIP's tokenizer files beside its weights.

    Raises:
        CheckpointError: not whole, damaged, or with a tower of another library.
        MissingExtraError: open_clip is not installed.
        BackendError: it is installed and does not load.
        ParityError: words that a bundle cannot describe.
    """
    page = _read_config(folder)
    model = _load(folder, page)
    side = model.visual.image_size
    side = side[0] if isinstance(side, (tuple, list)) else side
    preprocessing = _read_preprocessing(page.get("preprocess_cfg", {}), int(side), folder)
    scale = ScaledPixels(preprocessing)
    words = read_words(folder)
    start, end = words.place("<|startoftext|>"), words.place("<|endoftext|>")
    length = int(model.context_length)
    words = words.grown(int(page["model_cfg"]["text_cfg"].get("vocab_size", 49408)))
    if end != len(words.pieces) - 1:
        raise CheckpointError(
            f"{folder}: the end mark is token {end} of {len(words.pieces)}, and open_clip finds a text's end "
            "by its largest id; the tokenizer belongs to another checkpoint"
        )
    vocabulary, files = words.page(pad=_PAD_ID, unknown=end, start=start, end=end, max_text_tokens=length)
    tokenizer = device_tokenizer(vocabulary, files)
    texts = [tokenizer.encode(text, max_tokens=length) for text in (*TEXTS, "dogs " * 99)]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        width = model.encode_image(torch.zeros(1, 3, int(side), int(side))).shape[-1]
    sha256, source = identify(folder)
    return Subject(
        family="open_clip",
        kind=("retriever",),
        graphs=(
            vision_graph(VisionGraph(_folded(model.visual), scale), preprocessing.image_px, embedding=width),
            text_graph(
                TextGraph(model, length=length, end_id=end),
                width,
                example=torch.tensor([[start, 5, 6, 7, end, end], [start, 8, 9, 10, 11, end]]),
            ),
        ),
        preprocessing=preprocessing,
        vocabulary=vocabulary,
        files=files,
        embed_images=lambda pixels: model.encode_image(scale(pixels), normalize=True),
        embed_texts=lambda ids: model.encode_text(_filled(ids, length, end), normalize=True),
        texts=texts,
        pad_id=_PAD_ID,
        parameters=parameters,
        checkpoint_sha256=sha256,
        source={**source, "architecture": page["model_cfg"]},
        licence=read_licence(folder),
        remarks={
            # torchvision's middle lies one pixel further where an odd number is cut off on that side.
            "preprocessing": f"read from {CONFIG}, pixels not compared",
            "texts_cut_alike": check_words(words, vocabulary, files),
        },
    )


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        page = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        text, vision = page["model_cfg"]["text_cfg"], page["model_cfg"]["vision_cfg"]
        elsewhere = [name for name in _ELSEWHERE if text.get(name)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} describes no pair of towers ({type(error).__name__}: {error}); download it "
            "again"
        ) from error
    if elsewhere or "multimodal_cfg" in page["model_cfg"] or not isinstance(vision, dict):
        raise CheckpointError(
            f"{folder}: {', '.join(elsewhere) or 'multimodal_cfg'} asks for a tower that is not open_clip's "
            "own, which is not supported"
        )
    return dict(page)


def _load(folder: Path, page: dict[str, Any]) -> Any:
    """The network with its weights, whole or not at all."""
    library = _import_open_clip()
    from safetensors.torch import load_file

    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: {WEIGHTS} is missing; a pickle is not read, so download that file")
    settings = dict(page["model_cfg"])
    # A tower of timm would otherwise fetch weights of its own from the network.
    settings["vision_cfg"] = {**settings["vision_cfg"], "timm_model_pretrained": False}
    kind = library.CustomTextCLIP if settings.pop("custom_text", False) else library.CLIP
    try:
        model = kind(**settings)
        model.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except Exception as error:  # RuntimeError, TypeError, AssertionError, and those of safetensors and timm
        raise CheckpointError(
            f"{folder} cannot be loaded by open_clip: {(str(error).strip().splitlines() or ['?'])[0][:300]}; "
            f"it is damaged, half downloaded, or {CONFIG} belongs to other weights"
        ) from error
    model = model.float().eval().requires_grad_(False)
    check_finite(model, folder)
    return model


def _import_open_clip() -> Any:
    try:
        return import_module("open_clip")
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "openclip", "A folder of open_clip (MobileCLIP) needs that library"
        ) from error
    except Exception as error:  # torchvision beside another build of torch fails with a RuntimeError
        raise BackendError(
            f"open_clip is installed and does not load ({str(error).strip()[:200]}); install the torchvision "
            "that was built for your torch"
        ) from error


def _folded(tower: nn.Module) -> nn.Module:
    """A copy whose parallel branches are one path each, where the trunk is timm's."""
    if not hasattr(tower, "trunk"):
        return tower
    folded: nn.Module = import_module("timm.utils").reparameterize_model(copy.deepcopy(tower))
    return folded.eval()


def _read_preprocessing(page: dict[str, Any], side: int, folder: Path) -> Preprocessing:
    kind, resize = page.get("interpolation", "bicubic"), page.get("resize_mode", "shortest")
    if kind not in ("bilinear", "bicubic") or resize not in _RESIZES:
        raise CheckpointError(
            f"{folder / CONFIG}: pictures resized by {kind!r} and {resize!r}; the device knows bilinear and "
            f"bicubic, and {' and '.join(_RESIZES)}"
        )
    mean, std = (
        np.asarray(page.get(name, default), float) for name, default in (("mean", _MEAN), ("std", _STD))
    )
    return Preprocessing(
        image_px=side,
        resize=_RESIZES[resize],
        filter=kind,
        mean=_three(mean),
        std=_three(std),
        in_graph=True,
    )


def _three(values: Any) -> tuple[float, float, float]:
    one, two, three = (255.0 * float(value) for value in values)
    return one, two, three
