"""`python -m unlearn_ext` is `unlearn-ext`."""

from unlearn_ext.cli import main

if __name__ == "__main__":
    main()
