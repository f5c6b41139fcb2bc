"""What vLLM reads in the configuration of model folders: `python read_configurations.py OUT.json FOLDER...`."""

import json
import sys

import vllm
from vllm.transformers_utils.config import get_config

if __name__ == "__main__":
    out, *folders = sys.argv[1:]
    found = {folder: get_config(folder, trust_remote_code=False).to_dict() for folder in folders}
    with open(out, "w") as file:
        json.dump(found | {"version": vllm.__version__}, file, default=str)
