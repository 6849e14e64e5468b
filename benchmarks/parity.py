"""How near the answers of an exported graph are to PyTorch's, on prompts of a run's dataset.

    python -m benchmarks.parity RUN [--rows 50]

Whole rows, prompt and response, token by token: how often the likeliest next token is the same, and the mean
KL divergence. Without and with the adapter.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline import settings
from pipeline.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="a finished run with an adapter")
    parser.add_argument("--rows", type=int, default=50)
    args = parser.parse_args()
    settings.quiet_this_process()
    from pipeline.passes.measure import parity
    from pipeline.passes.rows import lab_rows

    run = Store(settings.home()).get(args.run)
    paths = [run.artifact(kind) for kind in ("checkpoint", "adapter", "onnx", "onnx_adapter")]
    if None in paths:
        parser.error("the run has no quantized checkpoint, adapter or graph")
    checkpoint, adapter, onnx, onnx_adapter = (Path(str(path)) for path in paths)
    rows = lab_rows(
        run.data, run.recipe.get("template", "chat"), str(checkpoint), "train", 0.0, 0, 512, limit=args.rows
    )
    texts = [rows[i][0]["input_ids"] for i in range(len(rows))]
    exact = parity.expected(checkpoint, adapter, texts)
    found = parity.measure(exact, onnx, onnx_adapter, texts)
    print(f"{'side':10}{'rows':>6}{'tokens':>8}{'same likeliest':>16}{'KL':>9}")
    for side, each in found.items():
        print(f"{side:10}{len(texts):6}{each.tokens:8}{each.agreement:16.3f}{each.divergence:9.4f}")


if __name__ == "__main__":
    main()
