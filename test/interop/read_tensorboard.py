"""Reads event files as TensorBoard does, and each file by itself.

read_tensorboard.py FOLDER: {"scalars": {tag: [[step, value], ...]}, "events": [[tag, step], ...]}, the first by TensorBoard's
accumulator, which forgets what a restart replaces, the second everything that stands in the files.
"""

import json
import pathlib
import sys

from tensorboard.backend.event_processing import event_accumulator, event_file_loader

folder = sys.argv[1]
accumulator = event_accumulator.EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0})
accumulator.Reload()
scalars = {
    tag: [[event.step, event.value] for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
}
events = [
    [value.tag, event.step]
    for path in sorted(pathlib.Path(folder).glob("events.out.tfevents.*"))
    for event in event_file_loader.LegacyEventFileLoader(str(path)).Load()
    for value in event.summary.value
]
print(json.dumps({"scalars": scalars, "events": events}))
