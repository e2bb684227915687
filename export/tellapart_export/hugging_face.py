"""Checkpoints as Hugging Face's libraries write them: found, refused where they are not whole, loaded.

Only safetensors are read, never a pickle, and no code of a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tellapart.errors import CheckpointError
from tellapart.manifest import Decoding

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt", "pytorch_model.pt")
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.jinja", "README.md")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
MOST_NEW_TOKENS = 64
"""Of a caption; a language model's own limit of a thousand is no default for one."""


def fetch_checkpoint(name: str | Path) -> Path:
    """The folder of a checkpoint: a folder as it is, a name on the hub downloaded or taken from the cache.

    Args:
        name: a folder, or "owner/name".

    Raises:
        CheckpointError: there is no such folder, and the hub does not have it or cannot be reached.
    """
    folder = Path(name)
    text = str(name)
    if folder.exists() or not _HUB_NAME.fullmatch(text):
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=list(_WANTED)))
    except Exception as error:  # its errors, those of its network library, and OSError
        raise CheckpointError(
            f"there is no folder {text}, and the hub did not give it ({_first_line(error)}); check the name "
            f"and the "
            "network, or download the folder on another machine and give its path"
        ) from error


def check_folder(folder: Path) -> None:
    """Refuse a folder whose weights are not there, or not safetensors, before anything is loaded.

    Raises:
        CheckpointError: says which file is missing and what to do.
    """
    if (folder / INDEX).is_file():
        try:
            shards = sorted(
                set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} cannot be read ({error}); download it again") from error
    else:
        shards = [WEIGHTS]
    missing = [name for name in shards if not (folder / name).is_file()]
    if not missing:
        return
    pickles = [name for name in _PICKLES if (folder / name).is_file()]
    if pickles and shards == [WEIGHTS]:
        raise CheckpointError(
            f"{folder} has its weights in {pickles[0]}, a pickle, which can run code and is not read; where "
            f"you trust "
            "it, convert it once: load it with the model's class of transformers, call "
            "save_pretrained(NEW_FOLDER, safe_serialization=True), and copy its tokenizer and preprocessor "
            "files "
            "beside the result"
        )
    raise CheckpointError(
        f"{folder}: {missing[0]} is missing ({len(missing)} of {len(shards)} files of weights); copy or "
        f"download the "
        "whole folder again"
    )


def load_network(model_class: Any, folder: Path, *, spare: Sequence[str] = ()) -> Any:
    """Load a network of transformers in float32, whole or not at all.

    Args:
        model_class: of transformers.
        folder: see `check_folder`.
        spare: patterns of weights that checkpoints carry and the network does not use.

    Returns:
        The network in eval mode, gradients off.

    Raises:
        CheckpointError: weights missing, left over, of other shapes, damaged, or not finite.
    """
    check_folder(folder)
    try:
        with quiet():
            network, report = model_class.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception as error:  # OSError, RuntimeError, SafetensorError, and those of configurations
        raise CheckpointError(
            f"{folder} cannot be loaded as {model_class.__name__}: {_first_line(error)}; it is damaged, half "
            "downloaded, or its config.json belongs to other weights"
        ) from error
    missing = sorted(report["missing_keys"])
    unknown = sorted(
        name for name in report["unexpected_keys"] if not any(re.search(part, name) for part in spare)
    )
    if missing or unknown or report["mismatched_keys"]:
        raise CheckpointError(
            f"{folder}: its weights are not those of its config.json as {model_class.__name__}: "
            f"{len(missing)} missing {missing[:3]}, {len(unknown)} left over {unknown[:3]}; download both "
            f"files "
            "again, or export with the class that the checkpoint was saved from"
        )
    network.requires_grad_(False)
    check_finite(network, folder)
    return network.eval()


def unit_rows(found: Any) -> Tensor:
    """Rows of unit length out of `get_image_features` or `get_text_features`.

    Args:
        found: (b, E), as transformers 4 gives it; 5 puts it into `pooler_output` of a larger answer.
    """
    rows: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return F.normalize(rows, dim=-1)


def check_finite(network: nn.Module, folder: Path) -> None:
    """Refuse weights with NaN or infinity.

    Raises:
        CheckpointError: names the first such tensor.
    """
    for name, tensor in network.named_parameters():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{folder}: {name} holds NaN or infinity, so no caption can come of it; the training that "
                f"made it "
                "diverged, or the file is damaged"
            )


def identify(folder: Path) -> tuple[str, dict[str, Any]]:
    """Hash of hashes of weights and configuration, and the facts for the manifest's `source`."""
    files: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and (
            path.suffix == ".safetensors" or path.name in ("config.json", "open_clip_config.json", INDEX)
        ):
            with path.open("rb") as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
            files[path.name] = digest.hexdigest()
    whole = hashlib.sha256(json.dumps(files, sort_keys=True).encode("utf-8")).hexdigest()
    return whole, {"checkpoint_files": files}


def read_licence(folder: Path) -> str:
    """What the model card's header says, or ""."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    found = re.search(r"^license: *['\"]?([\w.+-]+)", header.group(1), re.MULTILINE) if header else None
    return found.group(1) if found else ""


def read_decoding(settings: Any, *, longest: int) -> tuple[Decoding, list[str]]:
    """Decoding defaults out of a generation configuration.

    Args:
        settings: `transformers.GenerationConfig`.
        longest: tokens that the decoder has room for after the start mark.

    Returns:
        The page, and the names of settings that the device's decoding does not know, for the report.
    """
    limit = settings.max_new_tokens or (settings.max_length or 21) - 1
    most = max(1, min(limit, longest, MOST_NEW_TOKENS))
    fewest = settings.min_new_tokens or max(0, (settings.min_length or 0) - 1)
    page = Decoding(
        max_new_tokens=most,
        min_new_tokens=min(fewest, most),
        beams=settings.num_beams or 1,
        length_penalty=max(
            0.0, float(settings.length_penalty if settings.length_penalty is not None else 1.0)
        ),
        no_repeat_ngram=settings.no_repeat_ngram_size or 0,
    )
    ignored = []
    for name, neutral in (("repetition_penalty", 1.0), ("do_sample", False), ("num_beam_groups", 1)):
        value = getattr(settings, name, neutral)
        if value not in (neutral, None):
            ignored.append(f"{name}={value}")
    for name in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "bad_words_ids"):
        if getattr(settings, name, None):
            ignored.append(name)
    return page, ignored


def first_id(value: int | Sequence[int] | None, *others: int | None, what: str, folder: Path) -> int:
    """The first of several places that names a mark; of a list its first.

    Raises:
        CheckpointError: none of them does.
    """
    for found in (value, *others):
        if found is None:
            continue
        return int(found) if isinstance(found, int) else int(found[0])
    raise CheckpointError(f"{folder}: neither config.json nor generation_config.json names its {what} token")


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars, no advice of transformers; what matters comes as an error of ours."""
    from transformers.utils import logging as remarks

    logger = logging.getLogger("transformers")
    level = logger.level
    bars = remarks.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    remarks.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            remarks.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
