"""`python -m unlearn_ext` is `unlearn-ext`."""

from .cli import main

if __name__ == "__main__":
    main()
