"""Reuters-21578 R8: news texts as token ids."""

from __future__ import annotations

from collections import Counter

import numpy as np

from wideangle.data._folder import data_root, read_checked
from wideangle.data._raw import Raw
from wideangle.errors import InputError

FILE = "text/reuters-r8-{split}.tab"
HEADER_LINES = 3
LENGTH = 128
MINIMUM_COUNT = 5  # a rarer word counts as unknown, so that training sees the unknown token
PADDING, UNKNOWN = 0, 1


def parse_tab(content: bytes, where: str) -> list[tuple[str, list[str]]]:
    """Return (category, words) of each document: three header lines, then category <tab> text."""
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not text in UTF-8 ({error})") from error
    documents = []
    for number, line in enumerate(lines[HEADER_LINES:], HEADER_LINES + 1):
        if not line.strip():
            continue
        category, tab, text = line.partition("\t")
        if not tab or not category:
            raise InputError(f"{where}, line {number}: expected category <tab> text, got {line[:40]!r}")
        documents.append((category, text.lower().split()))
    if not documents:
        raise InputError(f"{where} holds no document after its {HEADER_LINES} header lines")
    return documents


def vocabulary(documents: list[tuple[str, list[str]]]) -> dict[str, int]:
    """Return the id of each word that occurs often enough, from 2 on, the most frequent first."""
    counts = Counter(word for _, words in documents for word in words)
    frequent = sorted((-count, word) for word, count in counts.items() if count >= MINIMUM_COUNT)
    return {word: UNKNOWN + 1 + rank for rank, (_, word) in enumerate(frequent)}


def encode(documents: list[tuple[str, list[str]]], ids: dict[str, int]) -> np.ndarray:
    """Return token ids (n, 128): the first 128 words of each document, padded with 0."""
    x = np.full((len(documents), LENGTH), PADDING, dtype=np.int64)
    for row, (_, words) in zip(x, documents, strict=True):
        kept = words[:LENGTH]
        row[: len(kept)] = [ids.get(word, UNKNOWN) for word in kept]
    return x


def read_reuters(split: str, root: str | None) -> Raw:
    """Return R8 as token ids (n, 128), vocabulary and the order of the 8 classes from the train split."""
    layout = f"{FILE.format(split='train')}[.gz] and {FILE.format(split='test')}[.gz]"
    folder = data_root(root, "reuters-r8", layout)

    def documents(part: str) -> list[tuple[str, list[str]]]:
        relative = FILE.format(split=part)
        return parse_tab(*read_checked(folder, relative, "reuters-r8", layout, None))

    train = documents("train")
    chosen = train if split == "train" else documents(split)
    names = sorted({category for category, _ in train})
    unknown = {category for category, _ in chosen} - set(names)
    if unknown:
        raise InputError(
            f"reuters-r8: the {split} split holds categories the train split lacks: {sorted(unknown)}"
        )
    ids = vocabulary(train)
    y = np.array([names.index(category) for category, _ in chosen])
    return Raw(encode(chosen, ids), y, len(names), vocabulary=len(ids) + 2, label_names=tuple(names))
