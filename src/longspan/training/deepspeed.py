"""The command `python -m longspan.training.deepspeed`; it lies in `longspan.deepspeed.overrides`."""

from longspan.deepspeed.overrides import main, overrides

__all__ = ["main", "overrides"]

if __name__ == "__main__":
    main()
