"""A large source becomes tokens: how fast, and in how much memory, which is not to grow with the file.

Rows are made on the spot, of two sizes of file; each is encoded by a fresh process, with characters and with byte pairs
trained on it, and as plain text with a tokenizer of GPT-2's kind. `python benchmarks/encoding.py 64` makes files of
64 MiB alone, and `python benchmarks/encoding.py 1024 text` plain text alone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from _row import PROJECT, print_row

SIZES_MIB = (64, 512)

CHILD = """
import json, re, sys, time
from pathlib import Path
from core.config import TrainingConfig, parse
from core.sources.corpus import Corpus
from core.tokens.encoding import Encoder, own_tokenizer
from core.sources.files import source_file

def peak_mib():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

path, kind, cache = sys.argv[1:]
corpus = Corpus.of_one(source_file(path))
before, began = peak_mib(), time.perf_counter()
if kind == "pretrained":
    from transformers import AutoTokenizer
    from core.tokens.tokenizer import PretrainedTokenizer
    library = AutoTokenizer.from_pretrained(Path(cache).parent / "gpt2")
    before, tokenizer = peak_mib(), PretrainedTokenizer(library, len(library))
else:
    tokenizer = own_tokenizer(parse(TrainingConfig, {"tokenizer": kind}), corpus)
trained = time.perf_counter()
file = Encoder(tokenizer, cache=Path(cache)).tokens(corpus.parts[0])
encoded = time.perf_counter()
print(json.dumps({
    "num_tokens": len(file.stored),
    "tokenizer_seconds": round(trained - began, 2),
    "encoding_seconds": round(encoded - trained, 2),
    "mib_per_second": round(Path(path).stat().st_size / 2**20 / (encoded - trained), 1),
    "peak_growth_mib": peak_mib() - before,
    "peak_mib": peak_mib(),
}))
"""


def main() -> None:
    """One row for each size, kind of file and tokenizer."""
    texts = (PROJECT / "sources" / "training_data_final_merged.md").read_text().split("\n\n")
    sizes = [int(said) for said in sys.argv[1:] if said.isdigit()] or SIZES_MIB
    with tempfile.TemporaryDirectory() as folder:
        _save_tokenizer(Path(folder) / "gpt2", texts)
        for size_mib in sizes:
            for suffix, kinds in {".jsonl": ("characters", "bpe"), ".md": ("pretrained",)}.items():
                if suffix == ".jsonl" and "text" in sys.argv[1:]:
                    continue
                path = Path(folder) / f"{size_mib}{suffix}"
                (make if suffix == ".jsonl" else make_text)(path, texts, size_mib << 20)
                for kind in kinds:
                    command = [sys.executable, "-c", CHILD, str(path), kind, str(Path(folder) / f"{size_mib}-{kind}")]
                    said = subprocess.run(command, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
                    print_row("encoding", size_mib=size_mib, file=suffix, tokenizer=kind, **json.loads(said))
                path.unlink()


def make_text(path: Path, texts: list[str], size_bytes: int) -> None:
    """Paragraphs in any order, as many as make the size."""
    chance = random.Random(1)
    with path.open("w") as file:
        while file.tell() < size_bytes:
            file.write("\n\n".join(chance.choices(texts, k=1000)) + "\n\n")


def _save_tokenizer(folder: Path, texts: list[str]) -> None:
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=4096, special_tokens=["<|endoftext|>"], show_progress=False)
    PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|endoftext|>").save_pretrained(folder)


def make(path: Path, texts: list[str], size_bytes: int) -> None:
    """Rows of prompts and answers, as many as make the size."""
    chance = random.Random(1)
    with path.open("w") as file:
        while file.tell() < size_bytes:
            prompt, completion = chance.choices(texts, k=2)
            file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")


if __name__ == "__main__":
    main()
