"""ClipCap: CLIP ViT-B/32, an MLP mapper and GPT-2, the captioner of the self-retrieval paper.

Layout of a sequence: ``[prefix vectors][caption tokens]`` with no start token. The image's projected CLIP
embedding, not normalised, becomes ``prefix_length`` vectors of GPT-2's width. Generation runs straight from
``inputs_embeds`` with a cache (the original wrote the vectors into extra rows of the embedding table) and
ends at the first token whose text holds a full stop, so a caption is one sentence. Weights come from a folder
of ours, from Hugging Face folders of CLIP and GPT-2, or from a ClipCap state dict as its authors published
it.

Axis letters: b images, P prefix vectors, T caption tokens, E width of the CLIP embedding, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache

from tellapart.errors import CheckpointError
from tellapart_model.captioner import CaptionNetwork
from tellapart_model.clipcap_config import ARCHITECTURE, CLIP_MEAN, CLIP_STD, ClipCapConfig
from tellapart_model.clipcap_walk import ClipCapWalk

TIED_KEY = "language.lm_head.weight"  # the same tensor as the token embedding, so it is not stored

# What transformers 5 calls the past, from a version in its midst on.
_CACHE = "cache" if "cache" in inspect.signature(GPT2LMHeadModel.forward).parameters else "past_key_values"


class ClipCap(CaptionNetwork):
    """CLIP image tower, mapper and GPT-2 in a row."""

    architecture = ARCHITECTURE

    def __init__(self, config: ClipCapConfig) -> None:
        """Build the three parts with random weights (real ones: `from_pretrained_parts`, `load_clipcap`)."""
        super().__init__()
        self.config = config
        self.vision = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                image_size=config.image_px,
                patch_size=config.patch_px,
                hidden_size=config.vision_width,
                intermediate_size=4 * config.vision_width,
                num_hidden_layers=config.vision_layers,
                num_attention_heads=config.vision_heads,
                projection_dim=config.embedding_width,
            )
        )
        hidden = config.language_width * config.prefix_length // 2
        self.mapper = nn.Sequential(
            nn.Linear(config.embedding_width, hidden),
            nn.Tanh(),
            nn.Linear(hidden, config.language_width * config.prefix_length),
        )
        self.language = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocabulary_size,
                n_positions=config.max_positions,
                n_embd=config.language_width,
                n_layer=config.language_layers,
                n_head=config.language_heads,
                bos_token_id=config.vocabulary_size - 1,
                eos_token_id=config.vocabulary_size - 1,
            )
        )

    def prefix(self, pixels: Tensor) -> Tensor:
        """Vectors that stand for the images.

        Args:
            pixels: (b, 3, image_px, image_px) float32, RGB, scaled by CLIP's mean and standard deviation.

        Returns:
            (b, P, language_width) float32.
        """
        return self._prefix(self.vision(pixel_values=pixels).image_embeds)

    def _prefix(self, embedding: Tensor) -> Tensor:
        """(b, E), on purpose not of unit length -> (b, P, language_width)."""
        vectors: Tensor = self.mapper(embedding)
        return vectors.view(len(embedding), self.config.prefix_length, self.config.language_width)

    def forward(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """Teacher-forced logits of every caption token.

        Args:
            pixels: (b, 3, image_px, image_px) float32, as for `prefix`.
            ids: (b, T) int64; rows padded on the right with any id, to be masked by the loss.

        Returns:
            (b, T, V) float32; row t predicts ``ids[:, t]``, the first one from the prefix alone.
        """
        words = self.language.transformer.wte(ids)  # (b, T, language_width)
        embeds = torch.cat([self.prefix(pixels), words], dim=1)
        logits: Tensor = self.language(inputs_embeds=embeds).logits
        return logits[:, self.config.prefix_length - 1 : -1]

    def features(self, pixels: Tensor) -> Tensor:
        """Pixels (b, s, s, 3) uint8 -> CLIP's projected embedding as one token, (b, 1, E) float32."""
        mean, std = (torch.tensor(values, device=pixels.device) for values in (CLIP_MEAN, CLIP_STD))
        scaled = (pixels.float() / 255 - mean) / std
        embedding: Tensor = self.vision(pixel_values=scaled.permute(0, 3, 1, 2)).image_embeds
        return embedding[:, None]

    def condition(self, features: Tensor) -> Tensor:
        """Features (b, 1, E) -> the prefix, (1, b, P, language_width)."""
        return self._prefix(features[:, 0])[None]

    def logits(self, ids: Tensor, condition: Tensor) -> Tensor:
        """Teacher forcing as the trainer has it.

        Args:
            ids: (r, T) int64 from the start mark on, which is not read; ids past the vocabulary are padding.
            condition: (1, r, P, language_width).

        Returns:
            (r, T, V); row t predicts the token after ``ids[:, t]``.
        """
        body = self.language.transformer
        words = body.wte(ids[:, 1:].clamp(max=self.config.vocabulary_size - 1))
        embeds = torch.cat([condition[0], words], dim=1)
        hidden = body(inputs_embeds=embeds, use_cache=False).last_hidden_state
        # The head last, as logits of the prefix would be as wide as the vocabulary for nothing.
        logits: Tensor = self.language.lm_head(hidden[:, self.config.prefix_length - 1 :])
        return logits

    def walk(self, condition: Tensor, longest: int) -> ClipCapWalk:
        """See `CaptionNetwork`."""
        return ClipCapWalk(self.language, condition[0], longest)

    def freeze_before(self, block: int, *, depthwise: bool) -> None:
        """Keep the patch embedding and the layers of the image tower before `block` as they are.

        Args:
            block: 0 lets all learn.
            depthwise: says nothing here, as the tower has no such filters.
        """
        tower = self.vision.vision_model
        if block:
            for part in (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:block]):
                part.requires_grad_(False)

    @torch.no_grad()
    def generate(
        self, pixels: Tensor, *, stop_ids: Iterable[int], beams: int = 5, max_new_tokens: int | None = None
    ) -> list[tuple[int, ...]]:
        """The most likely caption of each image by beam search; one beam is greedy decoding.

        Args:
            pixels: (b, 3, image_px, image_px) float32, as for `prefix`.
            stop_ids: tokens that end a caption (see `stop_token_ids`); the stop itself is kept.
            beams: hypotheses kept per image, ranked at the end by mean log-probability.
            max_new_tokens: longest caption; the configuration's limit when None, and never more than that.
        """
        limit = self.config.max_length - self.config.prefix_length
        limit = limit if max_new_tokens is None else min(max_new_tokens, limit)
        stops = frozenset(stop_ids)
        beams = min(beams, self.config.vocabulary_size)
        return [self._search(row[None], stops, beams, limit) for row in self.prefix(pixels)]

    def _search(self, embeds: Tensor, stops: frozenset[int], beams: int, limit: int) -> tuple[int, ...]:
        """Beam search of one image from its (1, P, width) prefix."""
        cache = DynamicCache()
        alive: list[tuple[int, ...]] = [()]
        scores = torch.zeros(1)
        finished: list[tuple[float, tuple[int, ...]]] = []
        for _ in range(limit):
            output = self.language(inputs_embeds=embeds, use_cache=True, **{_CACHE: cache})
            logprobs = torch.log_softmax(output.logits[:, -1], dim=-1)  # (alive, V)
            # Each live beam can lose at most one place to a stop at every stop token, so this many always
            # suffice.
            width = min(beams + len(stops) * len(alive), logprobs.numel())
            best, flat = (scores[:, None] + logprobs).flatten().topk(width)
            parents, following, totals, texts = [], [], [], []
            for rank, (total, index) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
                parent, token = divmod(index, logprobs.shape[1])
                text = (*alive[parent], token)
                if token in stops:
                    if rank < beams:  # a stop counts only where it would have stayed in the beam
                        finished.append((total / len(text), text))
                    continue
                parents.append(parent)
                following.append(token)
                totals.append(total)
                texts.append(text)
                if len(texts) == beams:
                    break
            if len(finished) >= beams or not texts:
                break
            alive, scores = texts, torch.tensor(totals)
            cache.reorder_cache(torch.tensor(parents))
            embeds = self.language.transformer.wte(torch.tensor(following)[:, None])  # (alive, 1, width)
        if len(finished) < beams:
            finished += [
                (score / len(text), text) for score, text in zip(scores.tolist(), alive, strict=True) if text
            ]
        return max(finished)[1]


def stop_token_ids(vocabulary: Mapping[str, int]) -> frozenset[int]:
    """Ids of the tokens whose text holds a full stop: 121 of them in GPT-2's vocabulary.

    Args:
        vocabulary: token -> id, as in GPT-2's ``vocab.json`` (its byte alphabet leaves "." as it is).
    """
    return frozenset(index for token, index in vocabulary.items() if "." in token)


def save_clipcap(folder: Path, model: ClipCap) -> None:
    """Write ``model.safetensors``, then ``config.json``, whose presence says that the folder is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in model.state_dict().items() if name != TIED_KEY}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(model.config.to_json(), encoding="utf-8")


def load_clipcap(folder: Path) -> ClipCap:
    """Open a folder that `save_clipcap` wrote.

    Raises:
        CheckpointError: a file is missing or the weights do not fit the configuration.
        ConfigError: the configuration is wrong, or of another architecture.
    """
    config_file, weights = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights):
        if not file.is_file():
            raise CheckpointError(f"{folder}: expected a ClipCap folder with {file.name}, which is missing")
    model = ClipCap(ClipCapConfig.from_json(config_file.read_text(encoding="utf-8")))
    _fill(model, load_file(weights), source=str(weights), optional={TIED_KEY})
    return model.eval()


def from_pretrained_parts(clip: Path, gpt2: Path, *, clipcap: Path | None = None) -> ClipCap:
    """Assemble a model from local Hugging Face folders, and a trained ClipCap state dict where there is one.

    Args:
        clip: folder of a CLIP model (both towers or the image tower alone).
        gpt2: folder of a GPT-2 language model.
        clipcap: ``.safetensors`` or ``.pt`` file with ``clip_project.model.{0,2}`` and ``gpt`` keys; without
            it the mapper keeps random weights and has to be trained.

    Raises:
        CheckpointError: a folder is not there, or sizes do not fit each other.
    """
    for folder in (clip, gpt2):
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder}: expected a Hugging Face model folder with a config.json")
    vision = CLIPVisionModelWithProjection.from_pretrained(str(clip), local_files_only=True)
    language = GPT2LMHeadModel.from_pretrained(str(gpt2), local_files_only=True)
    seen, spoken = vision.config, language.config
    config = ClipCapConfig(
        image_px=seen.image_size,
        patch_px=seen.patch_size,
        vision_width=seen.hidden_size,
        vision_layers=seen.num_hidden_layers,
        vision_heads=seen.num_attention_heads,
        embedding_width=seen.projection_dim,
        vocabulary_size=spoken.vocab_size,
        language_width=spoken.n_embd,
        language_layers=spoken.n_layer,
        language_heads=spoken.n_head,
        max_positions=spoken.n_positions,
        max_length=min(ClipCapConfig.max_length, spoken.n_positions),
    )
    model = ClipCap(config)
    _fill(model.vision, vision.state_dict(), source=str(clip))
    _fill(model.language, language.state_dict(), source=str(gpt2))
    if clipcap is not None:
        load_original_weights(model, clipcap)
    return model.eval()


def load_original_weights(model: ClipCap, file: Path) -> None:
    """Put a ClipCap state dict, as its authors saved it, into the mapper and GPT-2 of `model`.

    Rows that the authors appended to the token embedding for prefix vectors are left out, and so are the mask
    buffers that older GPT-2 code stored.

    Raises:
        CheckpointError: the file is missing, unreadable without pickle, or of other sizes.
    """
    if not file.is_file():
        raise CheckpointError(f"{file}: expected a ClipCap state dict, and there is no such file")
    try:
        if file.suffix == ".safetensors":
            stored = load_file(file)
        else:
            stored = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Both readers raise many types; whatever the cause, nothing of the file was run.
        raise CheckpointError(
            f"{file}: not a safetensors file or a plain state dict of tensors ({error})"
        ) from error
    mapped: dict[str, Tensor] = {}
    for name, value in cast("dict[str, Any]", stored).items():
        if name.startswith("clip_project.model."):
            mapped["mapper." + name.removeprefix("clip_project.model.")] = value
        elif name.startswith("gpt.") and not name.endswith((".attn.bias", ".attn.masked_bias")):
            key = "language." + name.removeprefix("gpt.")
            rows = model.config.vocabulary_size
            mapped[key] = value[:rows] if key.endswith(("wte.weight", "lm_head.weight")) else value
    if not any(name.startswith("mapper.") for name in mapped):
        raise CheckpointError(
            f"{file}: expected keys 'clip_project.model.0.weight' and so on; this is no ClipCap"
        )
    own = set(model.state_dict())
    spare = {name for name in own if name.startswith("vision.") or name == TIED_KEY}
    if not any(name.startswith("language.") for name in mapped):  # a mapper trained beside a frozen GPT-2
        spare |= {name for name in own if name.startswith("language.")}
    _fill(model, mapped, source=str(file), optional=spare)


def _fill(
    module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, optional: Iterable[str] = ()
) -> None:
    """Load tensors by name, refusing gaps, strangers and other shapes."""
    own = module.state_dict()
    missing = sorted(set(own) - set(tensors) - set(optional))
    unknown = sorted(set(tensors) - set(own))
    if missing or unknown:
        raise CheckpointError(
            f"{source}: weights missing {missing[:3]}, unknown {unknown[:3]} (first three of each)"
        )
    for name, value in tensors.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"{source}: {name} is {tuple(value.shape)}, expected {tuple(own[name].shape)}"
            )
    module.load_state_dict(dict(tensors), strict=False)
