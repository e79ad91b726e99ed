"""docs/architecture.md names every file of this package that the training loop calls into, found by profiling a run."""

import json
import re

from tests.support.commands import environment, python
from tests.support.paths import ROOT
from tests.support.training import training_words

# amplify_ds.train on one rank; prints the files whose functions trainer.py calls during the loop.
WATCHED = """
import json, sys
from pathlib import Path
import amplify_ds
from amplify_ds import train
package = str(Path(amplify_ds.__file__).parent)
after_the_loop = {"_stop", "_finish", "_leave", "_complete_checkpoint"}
called = set()
def watch(frame, event, argument):
    if event == "call" and frame.f_back and frame.f_code.co_filename.startswith(package):
        caller = frame.f_back.f_code
        if caller.co_filename.endswith("training/trainer.py") and caller.co_name not in after_the_loop:
            called.add(frame.f_code.co_filename[len(package) + 1:])
sys.setprofile(watch)
code = train.main()
sys.setprofile(None)
print("CALLED", json.dumps(sorted(called)))
sys.exit(code)
"""


def test_the_reading_path_names_what_the_loop_calls(shards, tmp_path):
    arguments = training_words(tmp_path / "run", shards, training__steps=2, checkpoint__every=1, log__every=1)
    result = python("-c", WATCHED, *arguments, env=environment(1))
    assert result.returncode == 0, result.stderr
    called = json.loads(result.stdout.partition("CALLED ")[2].splitlines()[0])
    text = (ROOT / "docs/architecture.md").read_text().partition("## The training path")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/.]+\.(?:py|yaml))`", text)
    assert all((ROOT / "amplify_ds" / file).is_file() for file in named)
    assert {"training/engine.py", "data/loader.py", "training/telemetry.py"} <= set(called) <= set(named)
