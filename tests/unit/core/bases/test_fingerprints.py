"""Adapters belong to the GGUF file that they were trained on."""

from pathlib import Path

from core.bases.fingerprints import of_base, of_small_files
from tests.gguf_files import make_gguf


def test_a_gguf_file_is_what_it_is_known_by(llama_folder: Path, tmp_path: Path) -> None:
    one, again = (make_gguf(tmp_path / name, llama_folder).parent for name in ("one", "again"))
    longer = make_gguf(tmp_path / "longer", llama_folder, llama__context_length=32).parent
    halves = make_gguf(tmp_path / "halves", llama_folder, pack="F16").parent
    assert of_base(one) == of_base(again)
    assert of_small_files(one)["architecture"] != of_small_files(longer)["architecture"]
    assert of_base(one)["base_weights"] != of_base(halves)["base_weights"]
