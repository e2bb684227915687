"""The words of a Hugging Face checkpoint -> the bundle's vocabulary, proved by the device's tokenizer."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tellapart.byte_pairs import WORD_END, BytePairTokenizer
from tellapart.errors import CheckpointError, MissingExtraError, ParityError
from tellapart.manifest import Vocabulary
from tellapart.tokenizer import Tokenizer
from tellapart.unigrams import UnigramTokenizer
from tellapart_export.hugging_face import quiet

SENTENCEPIECE = "spiece.model"

TEXTS = (
    "a dog runs through the grass",
    "Two girls' red-and-white kites, at the beach; it's windy!",
    "Ein Café in Zürich 漢字 naïve 100% ½ ٣ 🐕",
    "  a man   with\ta hat\n",
    "they're 12345 balloons (at 3:30), aren't they?",
    "",
)
"""On which the device's tokenizer and that of transformers have to agree."""

_CLASSES = {
    "wordpiece": "BertTokenizerFast",
    "byte_bpe": "GPT2TokenizerFast",
    "digit_bpe": "GPT2TokenizerFast",
    "clip_bpe": "CLIPTokenizerFast",
    "unigram": "SiglipTokenizer",
}


@dataclasses.dataclass(frozen=True)
class Words:
    """The pieces of a checkpoint in the order of their ids, and how a text is cut into them."""

    folder: Path
    kind: str
    """"wordpiece", "byte_bpe", "digit_bpe", "clip_bpe" or "unigram"."""
    pieces: tuple[str, ...]
    merges: tuple[str, ...]
    lowercase: bool
    scores: tuple[str, ...] = ()
    """Of unigrams: a number for each piece."""

    def place(self, piece: str) -> int:
        """The id of a piece.

        Raises:
            CheckpointError: there is no such piece.
        """
        if piece not in self.pieces:
            raise CheckpointError(
                f"{self.folder}: its tokenizer has no {piece!r}; it belongs to another checkpoint"
            )
        return self.pieces.index(piece)

    def grown(self, size: int, names: Mapping[int, str] | None = None) -> Words:
        """With as many pieces as the network has rows: names where they are known, fillers for the rest.

        Raises:
            CheckpointError: the network has fewer rows than there are words.
        """
        if size < len(self.pieces):
            raise CheckpointError(
                f"{self.folder} has {len(self.pieces)} words and its network rows for {size}; the tokenizer "
                f"belongs "
                "to another checkpoint"
            )
        names = names or {}
        more = [names.get(index, f"[unused-{index}]") for index in range(len(self.pieces), size)]
        scores = (*self.scores, *["0"] * len(more)) if self.kind == "unigram" else ()
        return dataclasses.replace(self, pieces=(*self.pieces, *more), scores=scores)

    def page(
        self, *, pad: int, unknown: int, start: int, end: int, max_text_tokens: int
    ) -> tuple[Vocabulary, dict[str, bytes]]:
        """The manifest's page and the files that it names.

        Raises:
            CheckpointError: a mark that is no piece.
        """
        for index in (pad, unknown, start, end):
            if not 0 <= index < len(self.pieces):
                raise CheckpointError(
                    f"{self.folder}: its configuration names token {index} as a mark, and there are "
                    f"{len(self.pieces)} tokens"
                )
        files = {"vocab.txt": _file(self.pieces)}
        if self.kind == "unigram":
            files["scores.txt"] = _file(self.scores)
        elif self.kind != "wordpiece":
            files["merges.txt"] = _file(self.merges)
        page = Vocabulary(
            file="vocab.txt",
            kind=self.kind,
            merges="merges.txt" if "merges.txt" in files else "",
            scores="scores.txt" if "scores.txt" in files else "",
            lowercase=self.lowercase,
            pad=self.pieces[pad],
            unknown=self.pieces[unknown],
            start=self.pieces[start],
            end=self.pieces[end],
            max_text_tokens=max_text_tokens,
        )
        return page, files


def read_words(folder: Path) -> Words:
    """Find the words of a checkpoint: `tokenizer.json`, or the files of the older tokenizers.

    Raises:
        CheckpointError: none of them is there, or they are of a kind that the device cannot read.
    """
    try:
        if (folder / SENTENCEPIECE).is_file():
            return _unigrams(folder)
        if (folder / "tokenizer.json").is_file():
            return _from_tokenizer_json(folder)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            pieces = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            merges = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            return _pairs(folder, pieces, merges, _read_added(folder))
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
            pieces = {piece: index for index, piece in enumerate(lines)}
            return _wordpieces(folder, pieces, _read_added(folder), lowercase=_is_lowercase(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{folder}: its tokenizer files cannot be read ({type(error).__name__}: {error}); download them "
            f"again"
        ) from error
    raise CheckpointError(
        f"{folder} has no tokenizer: expected tokenizer.json, vocab.json with merges.txt, or vocab.txt; "
        f"copy these "
        "files of the checkpoint into the folder"
    )


def check_words(words: Words, vocabulary: Vocabulary, files: Mapping[str, bytes]) -> int:
    """Cut texts with the device's tokenizer and with that of transformers.

    Returns:
        How many texts were cut alike.

    Raises:
        CheckpointError: transformers cannot make the tokenizer.
        ParityError: a text is cut otherwise.
    """
    ours = device_tokenizer(vocabulary, files)
    theirs = [reference_tokenizer(words.folder, words.kind)]
    if words.kind == "wordpiece":  # tokenizer_config.json may overrule the file, for this class alone
        theirs.append(_open_tokenizer(words.folder, _CLASSES[words.kind]))
    for text, reference in itertools.product(TEXTS, theirs):
        wanted = reference(text, add_special_tokens=False)["input_ids"]
        given = ours.encode(text)[1:-1]
        if wanted != given:
            raise ParityError(
                f"{words.folder}: {text!r} is {wanted[:12]} to its tokenizer and {given[:12]} to the "
                f"device's; the "
                "tokenizer has rules that a bundle cannot describe"
            )
    return len(TEXTS)


def device_tokenizer(vocabulary: Vocabulary, files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer that a bundle with these files will have."""
    pieces = files[vocabulary.file].decode("utf-8")
    if vocabulary.kind == "wordpiece":
        return Tokenizer.from_lines(pieces.rstrip("\n").split("\n"), vocabulary)
    if vocabulary.kind == "unigram":
        return UnigramTokenizer.from_files(vocabulary, pieces, files[vocabulary.scores].decode("utf-8"))
    return BytePairTokenizer.from_files(vocabulary, pieces, files[vocabulary.merges].decode("utf-8"))


def reference_tokenizer(folder: Path, kind: str) -> Any:
    """The tokenizer of transformers for a folder.

    A `tokenizer.json` counts as it stands: classes of transformers 5 take the words out of it and cut
    by rules of their own.

    Raises:
        CheckpointError: transformers cannot make it.
    """
    whole = kind != "unigram" and (folder / "tokenizer.json").is_file()
    return _open_tokenizer(folder, "PreTrainedTokenizerFast" if whole else _CLASSES[kind])


def _open_tokenizer(folder: Path, name: str) -> Any:
    import transformers

    try:
        with quiet():
            return getattr(transformers, name).from_pretrained(str(folder), local_files_only=True)
    except (
        Exception
    ) as error:  # OSError, ValueError, and those of the tokenizers library, which share no base
        raise CheckpointError(f"{folder}: transformers cannot read its tokenizer ({error})") from error


def _from_tokenizer_json(folder: Path) -> Words:
    page = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, kind = page["model"], page["model"].get("type")
    added = {entry["content"]: entry["id"] for entry in page.get("added_tokens", [])}
    if kind == "WordPiece":
        normalizer = page.get("normalizer") or {}
        return _wordpieces(folder, model["vocab"], added, lowercase=bool(normalizer.get("lowercase", True)))
    if kind == "BPE" and not model.get("byte_fallback"):
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
        return _pairs(folder, model["vocab"], merges, added, digits=_cuts_digits(page.get("pre_tokenizer")))
    raise CheckpointError(
        f"{folder}: its tokenizer is of the kind {kind!r}, and the device reads WordPiece, byte pairs as "
        f"GPT-2 and CLIP have them, and unigrams from a {SENTENCEPIECE}"
    )


def _wordpieces(
    folder: Path, pieces: Mapping[str, int], added: Mapping[str, int], *, lowercase: bool
) -> Words:
    return Words(folder, "wordpiece", _in_order(folder, {**added, **pieces}), (), lowercase)


def _pairs(
    folder: Path,
    pieces: Mapping[str, int],
    merges: list[str],
    added: Mapping[str, int],
    *,
    digits: bool = False,
) -> Words:
    kind = "digit_bpe" if digits else "byte_bpe"
    kind = "clip_bpe" if any(piece.endswith(WORD_END) for piece in pieces) else kind
    lines = tuple(line for line in merges if line and not line.startswith("#version"))
    return Words(folder, kind, _in_order(folder, {**added, **pieces}), lines, kind == "clip_bpe")


def _cuts_digits(rule: Any) -> bool:
    """Whether digits become words of their own first; what else a rule does is found out by `check_words`."""
    rules = rule.get("pretokenizers", []) if isinstance(rule, Mapping) else []
    return any(step.get("type") == "Digits" and step.get("individual_digits") for step in rules)


def _unigrams(folder: Path) -> Words:
    try:
        from sentencepiece import sentencepiece_model_pb2 as pages
    except ModuleNotFoundError as error:
        raise MissingExtraError("export", "Reading a spiece.model needs sentencepiece") from error
    page: Any = vars(pages)["ModelProto"]()  # made at run time, which type checkers do not see
    try:
        page.ParseFromString((folder / SENTENCEPIECE).read_bytes())
    except Exception as error:  # protobuf's own, which has no base of ours to name
        raise CheckpointError(f"{folder / SENTENCEPIECE} is damaged ({error}); download it again") from error
    kinds = page.SentencePiece.Type
    odd = sorted({kinds.Name(piece.type) for piece in page.pieces} & {"USER_DEFINED", "BYTE", "UNUSED"})
    spec = page.normalizer_spec
    if page.trainer_spec.model_type != page.trainer_spec.UNIGRAM or odd or spec.name != "nmt_nfkc":
        raise CheckpointError(
            f"{folder / SENTENCEPIECE}: the device reads unigrams normalised by nmt_nfkc without pieces of "
            f"other kinds, and this one has {spec.name!r} and {odd or 'no unigrams'}"
        )
    pieces = _in_order(folder, {piece.piece: index for index, piece in enumerate(page.pieces)})
    # repr: the shortest text that gives the same number.
    return Words(folder, "unigram", pieces, (), True, tuple(repr(piece.score) for piece in page.pieces))


def _in_order(folder: Path, pieces: Mapping[str, int]) -> tuple[str, ...]:
    named = {index: piece for piece, index in pieces.items()}
    size = max(named, default=-1) + 1
    if not size or len(named) != len(pieces) or any("\n" in piece for piece in pieces):
        raise CheckpointError(f"{folder}: its tokenizer gives one id to two words, or has no words")
    return tuple(named.get(index, f"[unused-{index}]") for index in range(size))


def _read_added(folder: Path) -> dict[str, int]:
    file = folder / "added_tokens.json"
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _is_lowercase(folder: Path) -> bool:
    file = folder / "tokenizer_config.json"
    page = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return bool(page.get("do_lower_case", True))


def _file(lines: tuple[str, ...]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode("utf-8")
