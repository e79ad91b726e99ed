"""Download UR100P: `python data_prep/fetch_ur100p.py --output DIR`.

Starts amplify_ds/fetch_ur100p.py.
"""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

    from amplify_ds.errors import command
    from amplify_ds.fetch_ur100p import main

    command(main)
