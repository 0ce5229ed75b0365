"""Loads an export with datasets.load_dataset and prints its features and rows by split: EXPORT."""
import json
import sys

import datasets

data = datasets.load_dataset(sys.argv[1])
features = {split: {name: str(feature) for name, feature in part.features.items()} for split, part in data.items()}
print(json.dumps({"features": features, "rows": {split: part.to_list() for split, part in data.items()}}))
