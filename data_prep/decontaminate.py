"""Find training sequences similar to validation: `python data_prep/decontaminate.py --train … --output FILE`.

Starts amplify_ds/decontaminate.py.
"""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

    from amplify_ds.decontaminate import main
    from amplify_ds.errors import command

    command(main)
