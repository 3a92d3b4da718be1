"""llama.cpp's own converter, in a process of its own (it has its own gguf package): `python llama_cpp_convert.py SOURCE`
reads [directory, file, type] from stdin, one JSON array a line, and writes the files.

The files have no vocabularies: the tests' are of no kind that a family has.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(source: str) -> None:
    sys.path[:0] = [source, str(Path(source) / "gguf-py")]
    conversion: Any = importlib.import_module("conversion")
    gguf: Any = importlib.import_module("gguf")

    def without_vocabulary(self: Any) -> None:
        self._set_vocab_none()
        if self.gguf_writer.arch != gguf.MODEL_ARCH.COHERE2:  # whose converter writes it elsewhere
            self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])

    types = {
        "F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16, "BF16": gguf.LlamaFileType.MOSTLY_BF16,
        "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }  # fmt: skip
    for line in sys.stdin:
        directory, file, kind = json.loads(line)
        place = Path(directory)
        said = conversion.ModelBase.load_hparams(place, False) | json.loads((place / "config.json").read_text())
        architecture = conversion.get_model_architecture(said, conversion.ModelType.TEXT)
        converter = conversion.get_model_class(architecture)
        converter.set_vocab = without_vocabulary
        import torch

        with torch.inference_mode():
            made = converter(place, types[kind], Path(file), hparams=said)
            if hasattr(made, "impl"):  # one that only chooses another
                type(made.impl).set_vocab = without_vocabulary
            made.write()


if __name__ == "__main__":
    main(sys.argv[1])
