"""A page's words and what they are worth: BLEU and METEOR as in the Fox / GOT protocol, through nltk and jieba.

Both packages and their dictionaries load when first used; nothing is downloaded. Source of the protocol: the evaluation
script of Fox (Liu et al., arXiv 2405.14295), which GOT-OCR (arXiv 2409.01704) and the paper use.
"""

import io
import logging
import os
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from .. import not_installed
from ..primitives.text import has_chinese
from ..records import BadData

WORDNET_VARIABLE = "PERCEPTION_R1_WORDNET"
"""Environment variable that names a folder with WordNet's files; set to nothing, no WordNet is used."""

WORDNET_FOLDERS = ("/usr/share/wordnet",)
"""Where WordNet's files are looked for: Debian's package wordnet-base puts them here. nltk's own data folders come next."""


def split_words(found: str, true: str) -> tuple[list[str], list[str]]:
    """The words of both texts: those that jieba finds when either has a Chinese character, else what white space separates.

    Raises BadData where jieba is needed and not installed.
    """
    if not (has_chinese(found) or has_chinese(true)):
        return found.split(), true.split()
    jieba = _jieba()
    return jieba.lcut(found), jieba.lcut(true)


def check_installed() -> None:
    """Raises BadData where nltk or jieba is not installed: called before a model answers, not after."""
    _nltk()
    _jieba()


@lru_cache(maxsize=1)
def _jieba() -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # of its own old syntax
            import jieba
    except ImportError as missing:
        raise BadData(not_installed("jieba", "eval")) from missing
    jieba.setLogLevel(logging.WARNING)
    return jieba


def _nltk() -> Any:
    try:
        import nltk.data
        from nltk.translate import bleu_score, meteor_score
    except ImportError as missing:
        raise BadData(not_installed("nltk", "eval")) from missing
    return nltk.data, bleu_score, meteor_score


def bleu(found: Sequence[str], true: Sequence[str]) -> float:
    """Sentence BLEU-4 without smoothing (Papineni et al., ACL 2002), as nltk defines it: nearly 0 without a common run of four words."""
    _, bleu_score, _ = _nltk()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # says that there is no common run
        return float(bleu_score.sentence_bleu([true], found))


def meteor(found: Sequence[str], true: Sequence[str]) -> float:
    """METEOR (Lavie and Agarwal, 2007) as nltk defines it: words, then stems, then WordNet's synonyms where there is one.

    Less than 1 even for the true text, by half the cube of the number of words' inverse.
    """
    _, _, meteor_score = _nltk()
    return float(meteor_score.single_meteor_score(true, found, wordnet=wordnet() or _NoSynonyms()))


def meteor_name() -> str:
    """`meteor`, or `meteor_without_synonyms` where no WordNet is found: another figure, so another name."""
    return "meteor" if wordnet() else "meteor_without_synonyms"


class _NoSynonyms:
    def synsets(self, word: str) -> tuple[()]:
        return ()


def wordnet_folder() -> Path | None:
    """The folder that the environment names, or the first known one with WordNet's files; None when there is none. Raises BadData."""
    named = os.environ.get(WORDNET_VARIABLE)
    if named is not None:
        if named and not (Path(named) / "data.noun").is_file():
            raise BadData(f"{WORDNET_VARIABLE}={named}: found no data.noun, expected the folder of WordNet's files")
        return Path(named) if named else None
    data, *_ = _nltk()
    folders = [Path(folder) for folder in WORDNET_FOLDERS] + [Path(folder) / "corpora" / "wordnet" for folder in data.path]
    return next((folder for folder in folders if (folder / "data.noun").is_file()), None)


def wordnet_version() -> str | None:
    """The version that WordNet's files state, for metrics.json; None when there is none."""
    reader = wordnet()
    return None if reader is None else str(reader.get_version())


def wordnet() -> Any:
    """nltk's reader of the WordNet that `wordnet_folder` finds, or None."""
    folder = wordnet_folder()
    return None if folder is None else _read_wordnet(str(folder))


@lru_cache(maxsize=2)
def _read_wordnet(folder: str) -> Any:
    data, *_ = _nltk()
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class LocalWordNet(WordNetCorpusReader):
        """English synonyms alone: no map to another version, which nltk would look for in data of its own."""

        def map_wn(self, version: str = "wordnet") -> None:
            return None

        def open(self, file: str) -> Any:
            if file == "lexnames" and not (Path(folder) / file).is_file():  # names of subjects, not in Debian's package and not needed
                return io.StringIO("".join(f"{number:02} unnamed 0\n" for number in range(45)))
            return super().open(file)

    if folder not in data.path:
        data.path.append(folder)  # nltk reads in folders that are listed here, and in no other
    with warnings.catch_warnings(action="ignore"):  # says that there are no other languages
        return LocalWordNet(folder, None)
