"""Other people's modules and losses: is anything changed, are they filtered, and whose is each captured loss?

make outside                                              # the environment, every case that has no row yet, the table
python -m benchmarks.outside --again                # every case anew, as after a change of this package
python -m benchmarks.outside --package monai --again
python -m benchmarks.outside --case lightly NTXentLoss --folder /tmp/rows

Rows go to results/compatibility.jsonl, one for each case; ``report.py`` makes docs/compatibility.md of them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.common.rows import RESULTS, provenance, write_rows
from benchmarks.outside.cases import Case, all_cases
from benchmarks.outside.report import TABLE, faults, gaps, rows_by_case, write_page

LIMIT = 600  # seconds for one case

Row = dict[str, Any]
_writing = threading.Lock()


def main() -> None:
    """Try what is asked for, write rows and table, and exit with 1 where a case shows a fault."""
    arguments = _arguments()
    wanted = [case for case in all_cases().values() if _is_wanted(case, arguments)]
    known = {} if arguments.again else rows_by_case(arguments.folder)
    left = [case for case in wanted if not _is_done(case, known.get(case.key))]
    print(f"{len(wanted)} cases, {len(left)} to be tried", flush=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    started = time.perf_counter()
    packages = {case.package: [each for each in left if each.package == case.package] for case in left}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for done in [pool.submit(_try_package, cases, arguments.folder) for cases in packages.values()]:
            done.result()
    print(f"{len(left)} cases in {time.perf_counter() - started:.0f} s")
    if arguments.folder == RESULTS:
        write_page()
    rows = rows_by_case(arguments.folder)
    found = {case.key: rows[case.key] for case in wanted if case.key in rows}
    told = [text for text in gaps(found, list(found)) if "fewer than" not in text] + faults(found)
    sys.exit("\n".join(told) if told else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outside",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--again", action="store_true", help="also what has a row of the same versions")
    parser.add_argument("--package", action="append", help="only of this package; again for more")
    parser.add_argument(
        "--case", action="append", nargs=2, metavar=("PACKAGE", "NAME"), help="only this; again for more"
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one package each")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the rows go")
    return parser.parse_args()


def _is_wanted(case: Case, arguments: argparse.Namespace) -> bool:
    if arguments.case:
        return list(case.key) in arguments.case
    return not arguments.package or case.package in arguments.package


def _is_done(case: Case, row: Row | None) -> bool:
    """Whether there is a row of the same versions."""
    return row is not None and row["version"] == metadata.version(case.package) and row["versions"] == _versions()


def _versions() -> dict[str, str]:
    return provenance()["versions"]


def _try_package(cases: Sequence[Case], folder: Path) -> None:
    """Try the cases of one package in one process, which is begun anew after each case that ends it."""
    left = list(cases)
    while left:
        num_done = 0
        for case, row in zip(left, _rows_of_process(left), strict=False):
            _keep(case, row, folder)
            num_done += 1
        left = left[num_done:]


def _rows_of_process(cases: Sequence[Case]) -> Iterable[Row]:
    """Rows as they come; the last one tells of a crash or of lost patience where there are fewer than cases."""
    from benchmarks.outside.trials import work  # needs the environment

    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=work, args=([case.key for case in cases], theirs))
    process.start()
    theirs.close()
    try:
        for _ in cases:
            started = time.perf_counter()
            try:
                row = ours.recv() if ours.poll(LIMIT) else {"error": f"not done within {LIMIT} seconds"}
            except EOFError:
                process.join()
                row = {"error": f"the process ended with exit code {process.exitcode}"}
            is_last = "seconds" not in row
            yield {"seconds": round(time.perf_counter() - started, 1), **row}
            if is_last:
                return
    finally:
        process.kill()
        process.join()


def _keep(case: Case, row: Row, folder: Path) -> None:
    """Write ``row`` in place of an older one of the same case."""
    new = {
        "package": case.package,
        "version": metadata.version(case.package),
        "name": case.name,
        "kind": case.kind,
        **row,
        **provenance(),
    }
    with _writing:
        rows = {**rows_by_case(folder), case.key: new}
        write_rows(TABLE, sorted(rows.values(), key=lambda each: (each["package"], each["kind"], each["name"])), folder)
    state = row.get("error") or f"filtering {row['filtering']}, bit equal {row['bit_equal']}, own {row['losses_equal']}"
    print(f"{case.package} {case.name}: {state} ({row['seconds']} s)", flush=True)


if __name__ == "__main__":
    main()
