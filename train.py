"""Pretrain a transformer on long sequences with block-sparse attention.

    python train.py                                            the defaults: causal, BigBird, 1,024 bytes
    python train.py sparsity=fixed model=llama objective=clm   another pattern: one word
    python train.py sparsity.block=32 optimizer.lr=2e-3        any argument of anything
    python train.py -m 'sparsity=glob(*)'                      all patterns, a run each, and a table of them
    python train.py experiment=smoke                           a run of seconds
    python train.py --help                                     the groups and their options
    python train.py --cfg job                                  the whole configuration, and no run

The way of a run: conf/train.yaml and the overrides are composed and checked against the signatures of what
they name (longspan.config.schemas); longspan.training.run.train builds each part, trains and reports. Its
files lie in logs/runs/<date_time>, those of a sweep in logs/sweeps/<date_time>/<job>.
"""

from longspan.cli.train import main

if __name__ == "__main__":
    main()
