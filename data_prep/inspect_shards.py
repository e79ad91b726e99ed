"""Inspect a directory of shards: `python data_prep/inspect_shards.py DIR`.

Starts amplify_ds/inspect_shards.py. Worker processes import this file again; only the command itself imports the rest.
"""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

    from amplify_ds.errors import command
    from amplify_ds.inspect_shards import main

    command(main)
