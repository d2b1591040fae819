"""Run all incidents, or those named, and write the results."""

import argparse
import sys

from . import report
from .bench import run
from .incident import Vllm
from .rules import judge
from .scenarios import incidents


def main() -> None:
    """One after the other; ends with 1 unless all were harmless, 95 % right and every healthy cache left alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    known = incidents()
    parser.add_argument(
        "--only", nargs="+", choices=sorted(known), metavar="NAME", help="these alone; of the others, earlier results stay"
    )
    parser.add_argument("--vllm", action="store_true", help="those that need a real vLLM, and no others; else they are left out")
    given = parser.parse_args()
    chosen = given.only or [name for name, one in known.items() if isinstance(one.stage, Vllm) == given.vllm]
    ran: list[report.Ran] = []
    for number, name in enumerate(chosen, 1):
        incident = known[name]
        seen = run(incident)
        ran.append((incident, seen, judge(incident, seen)))
        print(f"{number}/{len(chosen)} {report.line(*ran[-1])}", flush=True)
        if len(chosen) < 4:
            print(f"  {seen}", flush=True)
    total = report.counts(ran)
    print(total)
    report.save(ran, known)
    good = total["both right"] >= 0.95 * total["incidents"] and total["harmless"] == total["incidents"]
    sys.exit(not (good and total["healthy cases left alone"] == total["healthy cases"]))


if __name__ == "__main__":
    main()
