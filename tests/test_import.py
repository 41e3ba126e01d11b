"""What `import longspan` brings along."""

import subprocess
import sys


def test_importing_longspan_is_light():
    code = (
        "import sys, longspan\n"
        "heavy = {'torch', 'triton', 'transformers', 'lightning', 'hydra', 'wandb', 'datasets'}\n"
        "found = heavy & set(sys.modules)\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
