"""The source of the Python standard library and of installed packages: long documents on every machine."""

import hashlib
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from platform import python_version

from longspan.data.corpus import Corpus, CorpusInfo, Document, SplitInfo, Splits, check_fraction, hold_out

# Folders that hold no source of the package itself.
_LEFT_OUT = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"}

# A generated file says so in its head, mostly before its first statement.
_HEAD_BYTES = 4096
_FIRST_STATEMENT = re.compile(
    rb"^(?:import |from \S+ import |def |class |@|if |try:|\w+ *(?::[^\n]*)?= ?)", re.M
)
_MARKED = re.compile(rb"^#.*\b(?:auto-?|automatically )generated (?:by|from)\b", re.IGNORECASE | re.MULTILINE)
_GENERATED = re.compile(
    rb"""
    \b(?:file|module|code|part|content|table|data)s?\s+(?:is|was|were|has\s+been|have\s+been)\s+
        (?:(?:partially|partly|auto|automatically|machine)[\s-]*)*(?:generated|produced|copied)\b
  | \b(?:auto-?|automatically\ |machine-?)(?:generated|produced)\ (?:by|from|with|file|using)\b
  | ^\#.*\b(?:auto-?generated|do\ not\ edit|generated\ (?:by|from|and\ used\ by))\b
  | ^[rR]?\"\"\".*\bgenerated\ (?:from|on)\b
  | ^\#\s*(?:partially\ )?copied\ (?:verbatim\ )?from\b
    """,
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


class PythonSource(Corpus):
    """Python files of the standard library and of the named packages, read where they are installed.

    Left out: tests, empty files, files that equal an earlier one, files that are not UTF-8, and files whose
    head says that they are generated or copied. Validation holds whole top-level modules or packages
    (`json`, `argparse`, `numpy`).

    Args:
        packages: import names of installed packages, besides the standard library.
        validation_fraction: part of the bytes held out at most, in (0, 1).
        split_seed: chooses what is held out; apart from the seed of the training, so that runs compare.

    Raises:
        ValueError: if the fraction is out of range, or a package is not installed or has no Python source.

    """

    def __init__(
        self, packages: Sequence[str] = (), validation_fraction: float = 0.05, split_seed: int = 0
    ) -> None:
        check_fraction(validation_fraction)
        self.packages = tuple(packages)
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed

    def load(self) -> Splits:
        """Read all files; documents are named `json/decoder.py`, units are their first part."""
        roots = [Path(sysconfig.get_paths()["stdlib"])]
        roots += [_package_folder(package) for package in self.packages]
        documents: list[Document] = []
        seen: set[bytes] = set()
        for index, root in enumerate(roots):
            # The standard library's folder holds the top-level modules; a package's folder is one.
            prefix = "" if index == 0 else self.packages[index - 1].replace(".", "/") + "/"
            count = len(documents)
            for path in _python_files(root):
                text = path.read_bytes()
                digest = hashlib.sha256(text).digest()
                if digest in seen or not text.strip() or is_generated(text) or not _is_utf8(text):
                    continue
                seen.add(digest)
                documents.append(Document(prefix + path.relative_to(root).as_posix(), text))
            if len(documents) == count:
                raise ValueError(
                    f"found no Python source in {prefix.rstrip('/') or 'the standard library'!r} "
                    "that is not in the corpus already; leave it out of `packages`"
                )
        train, validation = self._split(documents)
        info = CorpusInfo("python_source", SplitInfo.of(train), SplitInfo.of(validation), self._details())
        return Splits(train, validation, info)

    def _split(self, documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
        sizes: dict[str, int] = {}
        for document in documents:
            sizes[unit(document.name)] = sizes.get(unit(document.name), 0) + len(document.text)
        held_out = hold_out(sizes, self.validation_fraction, self.split_seed)
        train = [document for document in documents if unit(document.name) not in held_out]
        validation = [document for document in documents if unit(document.name) in held_out]
        return train, validation

    def _details(self) -> dict[str, str]:
        distributions = _distributions(tuple(sys.path)) if self.packages else {}
        details = {"python": python_version()}
        for package in self.packages:
            top = package.partition(".")[0]
            # A package on the path that no distribution installed has no version to tell.
            owners = distributions.get(top, [])
            details[package] = version(owners[0]) if owners else "unknown"
        return details


@lru_cache(maxsize=1)
def _distributions(path: tuple[str, ...]) -> Mapping[str, list[str]]:
    """Names of the distributions that installed each top-level module, read once a process.

    The answer depends on `path`, the value of `sys.path`, alone. Reading the records of some hundred
    distributions takes about a second, which a sweep would pay for each of its jobs.
    """
    return packages_distributions()


def unit(name: str) -> str:
    """Top-level module or package that a file of the corpus belongs to: `json/decoder.py` -> `json`."""
    return name.partition("/")[0].removesuffix(".py")


def is_generated(text: bytes) -> bool:
    """Whether the head of a Python file says that it is generated or copied.

    A comment may say "generated by" anywhere in the head; other phrases count only before the first
    statement, since further down they speak of what the code does.
    """
    head = text[:_HEAD_BYTES]
    statement = _FIRST_STATEMENT.search(head)
    before = head[: statement.start()] if statement else head
    return _MARKED.search(head) is not None or _GENERATED.search(before) is not None


def _python_files(root: Path) -> Iterator[Path]:
    """Python files under a folder in the order of their names, folders that hold no source left out."""
    for path in sorted(root.iterdir()):
        if path.is_dir():
            if path.name not in _LEFT_OUT:
                yield from _python_files(path)
        elif path.suffix == ".py":
            yield path


def _package_folder(package: str) -> Path:
    """Folder that an installed package lies in, found without importing it."""
    try:
        spec = find_spec(package)
    except ModuleNotFoundError:  # the parent of a dotted name
        spec = None
    if spec is None:
        raise ValueError(
            f"packages names {package!r}, and no such package is installed; install it or leave it out"
        )
    if not spec.submodule_search_locations:
        raise ValueError(
            f"packages names {package!r}, which is a module and not a package with a folder of source"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
