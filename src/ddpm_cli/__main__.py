"""``python -m ddpm_cli``, the same as ``ddpm``."""

from .cli import main

if __name__ == "__main__":
    main()
