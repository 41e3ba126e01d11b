"""A forked command is as one that Python starts: its folder, arguments, streams, errors and status."""

import os
import subprocess
import sys

import pytest

CODE = """
import os, sys
print(sys.argv, os.getcwd(), os.environ["WORD"], __name__, sys.path[0])
print(sys.stdin.read(), file=sys.stderr)
"""
ENDS = {
    "of itself": "import atexit; atexit.register(print, 'at exit'); print('here', end='')",
    "with a status": "import sys; sys.exit(3)",
    "with a message": "import sys; sys.exit('so')",
    "with an error": "import nothing_of_this_name",
}


@pytest.mark.parametrize("how", ["file", "module", "code"])
def test_a_program_sees_what_it_would_see(warm_python, tmp_path, how):
    (tmp_path / "program.py").write_text(CODE)
    arguments = {"file": ["program.py"], "module": ["-m", "program"], "code": ["-c", CODE]}[how]
    options = {"cwd": tmp_path, "env": {**os.environ, "WORD": "word"}, "input": "in", "text": True}
    mine, theirs = (
        subprocess.run([python, *arguments, "a", "b c"], capture_output=True, **options)
        for python in (warm_python, sys.executable)
    )
    assert (mine.returncode, mine.stdout, mine.stderr) == (0, theirs.stdout, "in\n")


@pytest.mark.parametrize("code", ENDS.values(), ids=ENDS)
def test_an_end_is_that_of_a_process(warm_python, code):
    mine, theirs = (
        subprocess.run([python, "-c", code], capture_output=True, text=True)
        for python in (warm_python, sys.executable)
    )
    assert (mine.returncode, mine.stdout) == (theirs.returncode, theirs.stdout)
    assert mine.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]


def test_no_module_of_this_repository_is_there(warm_python):
    code = "import sys; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    seen = subprocess.run([warm_python, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'torch'" in seen
    assert "longspan" not in seen


def test_a_process_that_dies_is_an_error(warm_python):
    done = subprocess.run([warm_python, "-c", "import os; os.abort()"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "the process forked from warm_python.py died\n")
