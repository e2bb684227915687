"""A language model of Hugging Face on this machine: found, refused where it cannot serve, opened.

A causal one reads text; an image-text one has a processor besides its tokenizer, and reads photos too. Only
safetensors are read, never a pickle, and no code of a checkpoint is run. What was opened is told by a hash of
its files, so that a journal is never carried over to other weights.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tellapart.errors import CheckpointError, MissingExtraError, UsageError
from tellapart_training.boost.local_processor import open_processor

DEVICES = ("auto", "cpu", "cuda", "mps")
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "sentencepiece")


@dataclass(frozen=True)
class LocalModel:
    """A model and its tokenizer, ready to write.

    Attributes:
        name: as the user gave it.
        revision: commit on the hub; "" for a folder.
        sha256: of configuration, tokenizer, chat template and weights.
        network: of transformers, in eval mode, on its device.
        tokenizer: pads on the left.
        ends: ids of the tokens that end an answer.
        processor: of photos and text; None where the model reads text alone.
    """

    name: str
    revision: str
    sha256: str
    network: Any
    tokenizer: Any
    ends: tuple[int, ...]
    processor: Any = None

    @property
    def template(self) -> str:
        """How a chat is written, in Jinja; "" where nobody says."""
        return str(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template or "")

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint knows how a chat is written."""
        return bool(self.template)

    @property
    def room(self) -> int:
        """Most tokens of question and answer together; 0 where the configuration does not say."""
        config = self.network.config
        text = getattr(config, "text_config", None) or config
        return int(getattr(text, "max_position_embeddings", 0) or 0)

    def record(self) -> dict[str, Any]:
        """What an output and a journal say of it."""
        return {
            "revision": self.revision or None,
            "sha256": self.sha256,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "chat_template": self.has_template,
        }


def open_model(name: str, *, revision: str = "", device: str = "auto", sees: bool = False) -> LocalModel:
    """Open a model.

    Args:
        name: a folder, or "owner/name" of the hub, from the cache of this machine where it has it.
        revision: commit, tag or branch of the hub; "" is the newest.
        device: one of `DEVICES`.
        sees: whether photos will be shown to it.

    Raises:
        MissingExtraError: transformers or torch is not installed.
        CheckpointError: no such model, no safetensors, weights of another network, no language model; or one
            that reads text alone where it should see, or lacks its processor.
        UsageError: no such device.
    """
    folder, commit = _find(name, revision)
    _check_files(folder)
    try:
        import torch
        import transformers
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    device = _device(device, torch)
    given = {"local_files_only": True, "trust_remote_code": False}
    try:
        with _quiet():
            config = transformers.AutoConfig.from_pretrained(str(folder), **given)
            has_eyes = _has_eyes(folder, config, sees=sees)
            processor = open_processor(folder, config.model_type) if has_eyes else None
            if processor is not None:
                kind, tokenizer = transformers.AutoModelForImageTextToText, processor.tokenizer
            else:
                kind = transformers.AutoModelForCausalLM
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    str(folder), padding_side="left", **given
                )
            network, report = kind.from_pretrained(
                str(folder), config=config, use_safetensors=True, dtype="auto", output_loading_info=True,
                **given,
            )  # fmt: skip
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    except CheckpointError:
        raise
    except Exception as error:  # OSError, ValueError, RuntimeError, SafetensorError, and those of tokenizers
        raise CheckpointError(
            f"{folder} cannot be opened as a language model ({_first_line(error)}): it is damaged, half "
            f"downloaded, or needs code of its own, which is never run"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        # transformers would fill them with random numbers and go on.
        absent = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise CheckpointError(
            f"{folder}: its weights lack {absent[0]} ({len(absent)} in all); download it again"
        )
    ends = _ends(network, tokenizer)
    if tokenizer.pad_token_id is None:
        if not ends:
            raise CheckpointError(f"{folder}: its tokenizer has no end mark, so that no answer would end")
        tokenizer.pad_token_id = ends[0]
    # Its own sampling settings would be mixed into ours, and go unrecorded.
    network.generation_config = transformers.GenerationConfig(
        eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    network = network.to(device).eval().requires_grad_(False)
    return LocalModel(name, commit, _hash(folder), network, tokenizer, ends, processor)


def _find(name: str, revision: str) -> tuple[Path, str]:
    folder = Path(name)
    if folder.is_dir():
        if revision:
            raise UsageError(f"{name} is a folder, and a folder has no --revision")
        return folder, ""
    if folder.exists() or not _HUB_NAME.fullmatch(name):
        raise CheckpointError(
            f"no model at {name!r}: expected a folder with config.json, or a name of the hub, owner/name"
        )
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    try:
        found = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_WANTED)))
    except Exception as error:  # its errors, those of its network library, and OSError
        raise CheckpointError(
            f"there is no folder {name}, and the hub did not give it ({_first_line(error)}): check the name "
            f"and the network, or download the folder elsewhere and give its path"
        ) from error
    return found, found.name


def _check_files(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is no model: config.json cannot be read ({error})") from error
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{folder} has no .safetensors; a pickle is never read: download the safetensors, or convert it"
        )


def _has_eyes(folder: Path, config: Any, *, sees: bool) -> bool:
    """Whether to open a checkpoint as an image-text model; some kinds are both, and serve as asked."""
    from transformers.models.auto import modeling_auto as known

    own = list(getattr(config, "architectures", None) or ())

    def one_of(names: Any) -> bool:
        classes = {one for name in names.values() for one in ((name,) if isinstance(name, str) else name)}
        return bool(classes & set(own)) if own else config.model_type in names

    writes = one_of(known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    looks = one_of(known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    kind = ", ".join(own) or config.model_type
    if not (writes or looks):
        raise CheckpointError(
            f"{folder} holds {kind}, which is no causal language model and no image-text model: give one "
            f"that writes text (...ForCausalLM)"
        )
    if sees and not looks:
        raise CheckpointError(
            f"{folder} holds {kind}, which reads text alone: --vision local needs an image-text model, such "
            f"as SmolVLM, Idefics3 or LLaVA; name it by --vision-model"
        )
    return looks and (sees or not writes)


def _ends(network: Any, tokenizer: Any) -> tuple[int, ...]:
    found = network.generation_config.eos_token_id
    ids = list(found) if isinstance(found, (list, tuple)) else [found]
    return tuple(dict.fromkeys(int(one) for one in [*ids, tokenizer.eos_token_id] if one is not None))


def _device(device: str, torch: Any) -> str:
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise UsageError(f"--device {device}: this machine, or this torch, has none; try auto")
    return device


def _hash(folder: Path) -> str:
    whole = hashlib.sha256()
    for path in sorted({path for pattern in _WANTED for path in folder.glob(pattern)}):
        whole.update(f"{path.name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                whole.update(block)
    return whole.hexdigest()


def _missing(error: ModuleNotFoundError) -> Exception:
    if (error.name or "").partition(".")[0] not in _NEEDED:
        return error
    return MissingExtraError(
        "boost,train", f"a local language model needs {error.name}, which is not installed"
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers' remarks on checkpoints are kept from the progress bar; what matters raises."""
    from transformers.utils import logging

    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bar:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
