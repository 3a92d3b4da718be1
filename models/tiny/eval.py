"""Measure the embedded model on held-out cases: `python models/tiny/eval.py [--dtype bf16|int8|fp32] [--cases N]`.

Prints a table of accuracy by ability, for bf16 and int8 unless a type is chosen. The exit status is 1 if an ability
with a required bar misses it.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from llmasos.models.tiny.recipe.evaluation import BARS, COPYING, marks, questions_by_ability
from llmasos.models.tiny.recipe.int8 import quantise

HERE = Path(__file__).resolve().parent
DTYPES = ("bf16", "int8", "fp32")


def load(path: Path, dtype: str) -> PreTrainedModel:
    """The model of `path` ready to generate: in bf16, in fp32, or bf16 with int8 linear layers."""
    kept = torch.float32 if dtype == "fp32" else torch.bfloat16
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=kept)
    model.eval()
    if dtype == "int8":
        quantise(model)
    return model


def main() -> int:
    """Read the command line, measure, print; returns the exit status."""
    parser = argparse.ArgumentParser(description="Evaluate the embedded model on held-out cases.")
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="default: bf16 and int8")
    parser.add_argument("--cases", type=int, default=400, help="cases for each ability (default: %(default)s)")
    parser.add_argument("--model", type=Path, default=HERE, help="directory of the model (default: this one)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="print N wrong answers of each ability")
    options = parser.parse_args()
    dtypes: list[str] = options.dtype or ["bf16", "int8"]
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    questions = questions_by_ability(options.cases)
    results: dict[str, dict[str, float]] = {ability: {} for ability in questions}
    for dtype in dtypes:
        model = load(options.model, dtype)
        for ability, asked in questions.items():
            began = time.monotonic()
            given = marks(model, tokenizer, ability, asked)
            results[ability][dtype] = sum(right for _, right in given) / len(given)
            took = time.monotonic() - began
            print(f"{dtype} {ability}: {results[ability][dtype]:.1%} in {took:.0f} s", file=sys.stderr)
            wrong = [(q, answer) for q, (answer, right) in zip(asked, given, strict=True) if not right]
            for question, answer in wrong[: options.show]:
                print(f"  asked {question.messages[-1]['content']!r}\n  want  {question.answer!r}\n  got   {answer!r}")
    results["copying"] = {dtype: sum(results[ability][dtype] for ability in COPYING) / len(COPYING) for dtype in dtypes}
    head = "".join(f"{dtype:>9}" for dtype in dtypes)
    print(f"{'ability':<12}{head}{'required':>11}   ({options.cases} cases each)")
    missed = False
    for ability, accuracies in results.items():
        bar = BARS.get(ability)
        row = f"{ability:<12}" + "".join(f"{accuracies[dtype]:>9.1%}" for dtype in dtypes)
        print(row + (f"{bar:>11.0%}" if bar else f"{'-':>11}"))
        missed = missed or (bar is not None and min(accuracies.values()) < bar)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
