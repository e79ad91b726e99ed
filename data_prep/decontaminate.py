"""Training sequences similar to a validation sequence: `python data_prep/decontaminate.py --train … --output FILE`.

The command is amplify_ds/decontaminate.py.
"""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

    from amplify_ds.decontaminate import main
    from amplify_ds.errors import command

    command(main)
