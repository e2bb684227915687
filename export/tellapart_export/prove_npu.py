"""`python -m tellapart_export.prove_npu BUNDLE`, where there is an NPU: does it compute what we proved?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from tellapart.backends import Session, open_session
from tellapart.backends.fixed_shapes import is_fixed
from tellapart.bundle import Bundle, open_bundle
from tellapart.errors import MissingExtraError, TellapartError, UsageError
from tellapart.types import RuntimeOptions
from tellapart_coreml.prove import compare_runs


def prove_bundle(bundle: Bundle, device: str = "NPU", *, rounds: int = 4) -> dict[str, Any]:
    """Run each OpenVINO graph on a device and on the processor, on the same drawn inputs.

    Args:
        bundle: exported with `--target openvino-npu`.
        device: by OpenVINO's name.
        rounds: inputs drawn for each graph.

    Returns:
        By role and output {"max_abs", "cosine"}, the worst of all rounds.

    Raises:
        ParityError: they differ by more than float16 explains.
        BackendError: the device is not there, or refuses a graph.
        UsageError: the bundle has no such graphs.
    """
    graphs = [graph for graph in bundle.manifest.graphs if graph.target == "openvino" and is_fixed(graph)]
    if not graphs:
        raise UsageError(
            f"{bundle.name} has no OpenVINO graphs of fixed shapes; tellapart export CHECKPOINT --target "
            "openvino-npu makes them"
        )
    report: dict[str, Any] = {}
    for graph in graphs:
        with ExitStack() as stack:

            def opened(name: str, role: str = graph.role, stack: ExitStack = stack) -> Session:
                runtime = RuntimeOptions(backend="openvino", providers=(name,))
                session = open_session(bundle, role, runtime)
                stack.callback(session.close)
                return session

            there, here = opened(device), opened("CPU")
            compare_runs(report, graph, here.run, there.run, rounds=rounds, device=device)
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: 0 proved, 1 it differs or cannot run here, 2 usage or a missing package."""
    parser = argparse.ArgumentParser(
        prog="python -m tellapart_export.prove_npu",
        description="Prove a bundle's OpenVINO graphs on the NPU of this machine.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", help="exported with --target openvino-npu")
    parser.add_argument("--device", default="NPU", metavar="NAME", help="of OpenVINO (default NPU)")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="inputs for each graph")
    args = parser.parse_args(argv)
    try:
        with open_bundle(args.bundle) as bundle:
            report = prove_bundle(bundle, args.device, rounds=args.rounds)
    except TellapartError as error:
        print(f"prove_npu: {type(error).__name__}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (UsageError, MissingExtraError)) else 1
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
