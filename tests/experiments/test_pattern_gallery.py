"""The gallery shows every pattern, in both directions."""

import runpy
import sys
from pathlib import Path

from longspan.sparsity import PATTERNS

GALLERY = Path(__file__).parents[2] / "experiments" / "pattern_gallery" / "gallery.py"


def test_it_shows_every_pattern(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "small.png"
    monkeypatch.setattr(
        sys, "argv", ["gallery.py", "--seq-len", "256", "--block", "16", "--out", str(picture)]
    )
    made = runpy.run_path(str(GALLERY), run_name="__main__")["patterns"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "wrote small.png: 256 tokens in blocks of 16" in capsys.readouterr().out
    for direction in ("bidirectional", "unidirectional"):
        shown = made(direction, 16)
        # Heads of several patterns have no picture but those patterns'.
        assert list(shown) == [name for name in PATTERNS if name != "heads"]
        assert all(pattern.name == name for name, pattern in shown.items())
        assert {pattern.attention for pattern in shown.values()} == {direction}
