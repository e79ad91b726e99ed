"""Turn protein sequences into shards: `python data_prep/build_shards.py --input … --output DIR`.

Starts amplify_ds/build_shards.py. Worker processes import this file again; only the command itself imports the rest.
"""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

    from amplify_ds.build_shards import main
    from amplify_ds.errors import command

    command(main)
