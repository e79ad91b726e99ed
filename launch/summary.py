"""Print the results of the quick start: `python launch/summary.py DIRECTORY SECONDS`."""

from amplify_ds import start

if __name__ == "__main__":
    start.begin()

import argparse
from pathlib import Path

from amplify_ds.shell import command_line
from amplify_ds.structured import read_json


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path, help="the directory of the quick start, with shards, run and export")
    parser.add_argument("seconds", type=int, help="duration of the quick start")
    arguments = parser.parse_args()
    directory = arguments.place
    run = directory / "run"
    train, validation = (read_json(directory / name / "manifest.json") for name in ("train", "validation"))
    result = read_json(run / "result.json")
    scores = {(score["step"], score["protocol"]): score for score in result["evaluations"]}

    def perplexity(protocol):
        first, last = scores[0, protocol], scores[result["steps"], protocol]
        return (
            f"{first['perplexity']:.2f} before, {last['perplexity']:.2f} after; residue frequencies alone "
            f"{last['baseline_perplexity']:.2f}, {last['gain'] / last['gain_se']:.0f} standard errors higher"
        )

    rows = [
        (
            "sequences",
            f"{train['counts']['sequences']:,} for training, {validation['counts']['sequences']:,} for validation",
        ),
        (
            "residues",
            f"{train['counts']['residues']:,} for training, {validation['counts']['residues']:,} for validation",
        ),
        ("packing efficiency", f"{train['packing_efficiency']:.2%} of the tokens of a row are not padding"),
        ("model", f"{result['parameters']:,} parameters"),
        (
            "steps",
            f"{result['steps']} on {result['devices']} {result['device']} ranks, {result['residues']:,} residues read",
        ),
        ("speed", f"{result['residues_per_second']:,.0f} residues/s"),
        ("perplexity, <mask> only", perplexity("mask_only")),
        ("perplexity, 80/10/10", perplexity("published")),
        ("duration", f"{arguments.seconds // 60} min {arguments.seconds % 60} s"),
    ]
    evaluate = ("python", "-m", "amplify_ds.evaluate")
    commands = [
        ("shards", directory / "train", ("python", "data_prep/inspect_shards.py", directory / "train", "--verify")),
        ("checkpoint", result["checkpoint"], (*evaluate, "--model", run, "--data", directory / "validation")),
        ("events", run / "events", ("tensorboard", "--logdir", run)),
        ("plots", run / "plots", ("python", "-m", "amplify_ds.plot", run)),
        ("export", directory / "export", ("python", "launch/try_export.py", directory / "export")),
    ]
    print("\n== done")
    for name, value in rows:
        print(f"{name:<24}{value}")
    width = max(len(str(path)) for _, path, _ in commands) + 2
    print(f"\n{'result':<12}{'path':<{width}}command (after `. .venv/bin/activate`)")
    for name, path, command in commands:
        print(f"{name:<12}{str(path):<{width}}{command_line(*command)}")


if __name__ == "__main__":
    main()
