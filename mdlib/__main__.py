"""The command line: python -m mdlib run | fill | report | check | fetch | predict | site."""

import argparse
import sys
from pathlib import Path

from mdlib.core.files import StoreError, read_json
from mdlib.core.paths import ROOT
from mdlib.data.download import fetch_dataset
from mdlib.data.sources import SOURCES
from mdlib.run import pipeline, predict, preflight, report
from mdlib.run.presets import PresetError, load_preset, parse_sets
from mdlib.show import site


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mdlib", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks of a preset and write a report")
    run.add_argument("preset")
    run.add_argument("--out", type=Path, help="folder of the run (default: reports/PRESET)")
    run.add_argument(
        "--set", action="append", default=[], metavar="NOTEBOOK.PARAMETER=VALUE", dest="sets"
    )
    part = run.add_mutually_exclusive_group()
    part.add_argument(
        "--from",
        dest="start",
        metavar="STAGE",
        help="run this stage and all after it, even where they are up to date",
    )
    part.add_argument("--only", metavar="STAGE", help="run this stage alone")
    lacks = commands.add_parser(
        "fill", help="run at smoke size what a run lacks up to a stage; what has run stays as it is"
    )
    lacks.add_argument("run", type=Path, help="folder of the run, such as reports/lab")
    lacks.add_argument("stage", metavar="STAGE")
    again = commands.add_parser("report", help="write the report of a finished run again")
    again.add_argument("run", type=Path)
    again.add_argument("--readme", action="store_true", help="also put the results into README.md")
    check = commands.add_parser(
        "check", help="say what a preset needs, what is missing, and what a run takes"
    )
    check.add_argument("preset")
    check.add_argument(
        "--set", action="append", default=[], metavar="NOTEBOOK.PARAMETER=VALUE", dest="sets"
    )
    fetch = commands.add_parser(
        "fetch", help="download a data set; its licence and terms are printed first"
    )
    fetch.add_argument("dataset", choices=sorted(SOURCES))
    fetch.add_argument(
        "--root", type=Path, default=ROOT / "data", help="folder to put it in (default: data)"
    )
    new = commands.add_parser(
        "predict", help="maps, overlays and COCO JSON for new pictures, from a finished run"
    )
    new.add_argument("images", nargs="+", type=Path, help="picture files, or folders of them")
    new.add_argument(
        "--run", type=Path, required=True, help="folder of the run, such as reports/demo"
    )
    new.add_argument("--out", type=Path, help="where to write (default: RUN/predictions)")
    pages = commands.add_parser("site", help="the course and a run's executed notebooks as pages")
    pages.add_argument("run", type=Path)
    pages.add_argument(
        "--out",
        type=Path,
        default=ROOT / "reports" / "site",
        help="where to write (default: reports/site)",
    )
    given = parser.parse_args(arguments)
    try:
        if given.command == "run":
            return pipeline.run(
                given.preset,
                out=given.out,
                overrides=parse_sets(given.sets),
                start=given.start,
                only=given.only,
            )
        if given.command == "fill":
            return pipeline.fill(given.run.resolve(), given.stage)
        if given.command == "check":
            return (
                pipeline.WRONG
                if preflight.check(given.preset, parse_sets(given.sets))
                else pipeline.DONE
            )
        if given.command == "fetch":
            fetch_dataset(given.dataset, given.root)
            return pipeline.DONE
        if given.command == "predict":
            return (
                pipeline.WRONG
                if predict.run(given.images, run_dir=given.run.resolve(), out=given.out)
                else pipeline.DONE
            )
        if given.command == "site":
            print(f"site: {site.build(given.run, given.out)[0]}")
            return pipeline.DONE
        preset = load_preset(read_json(given.run / "artifacts" / "run.json")["preset"])
        report.write(given.run.resolve(), preset)
        if given.readme:
            report.write_readme(given.run)
        return pipeline.DONE
    except (PresetError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return pipeline.WRONG
    except OSError as error:
        print(
            f"error: {error.strerror or error}: {error.filename or ''} (is the disk full, or the folder read-only?)",
            file=sys.stderr,
        )
        return pipeline.WRONG
    except KeyboardInterrupt:
        print("interrupted; the next run goes on from the last whole stage", file=sys.stderr)
        return pipeline.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
