"""What a transformers reads from model folders, under any version: `python read_folders.py OUT.json FOLDER...`."""

import json
import sys

import torch
import transformers

TEXT = "hello <|im_end|> world"
POSITIONS = 48


def read(folder: str) -> dict:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    ids = torch.arange(POSITIONS).remainder(200)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double()
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(TEXT)
    return {"logits": logits.tolist(), "tokens": dict(tokens), "dtype": str(model.dtype)}


if __name__ == "__main__":
    out, *folders = sys.argv[1:]
    with open(out, "w") as file:
        json.dump({folder: read(folder) for folder in folders} | {"version": transformers.__version__}, file)
