import subprocess
import sys


def test_data_brings_in_no_trainer_and_no_reader_of_data_sets():
    code = (
        "import sys, longspan\n"
        "before = set(sys.modules)\n"
        "import longspan.data\n"
        "added = set(sys.modules) - before\n"
        "found = {'lightning', 'hydra', 'wandb', 'datasets', 'triton', 'matplotlib'} & added\n"
        "assert 'longspan.data.hub' in added and not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
