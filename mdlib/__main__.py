"""The command line: python -m mdlib run | fill | report | check | fetch | predict | site."""

# Each command imports what it needs: `--help` and the runner do without torch, which takes seconds
# to import and some hundred MB of memory.

import argparse
import errno
import io
import sys
from pathlib import Path

from mdlib.core.paths import ROOT
from mdlib.run.exit_codes import DONE, INTERRUPTED, WRONG


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after `python -m mdlib`; those of this process if None.

    Returns:
        The exit code, one of mdlib.run.exit_codes.
    """
    for stream in (sys.stdout, sys.stderr):  # a name of a file that it cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = _parser().parse_args(arguments)

    from mdlib.core.files import StoreError

    try:
        return given.command(given)
    except OSError as error:
        # without a number it is a text of this library, such as "no zoo at ..."
        told = f"{error.strerror}: {error.filename or ''}" if error.errno else f"{error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            told += " (is the disk full, or the folder read-only?)"
        return _wrong(told)
    except KeyError as error:
        return _wrong(f"{error} is missing")
    except (StoreError, ValueError) as error:  # PresetError, ImageError and others are ValueErrors
        return _wrong(f"{error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from what is finished", file=sys.stderr)
        return INTERRUPTED


def _wrong(text: str) -> int:
    """Say what is wrong with arguments or data."""
    print(f"error: {text}", file=sys.stderr)
    return WRONG


def _parser() -> argparse.ArgumentParser:
    """Every command with its arguments; `command` is the function below that carries it out."""
    parser = argparse.ArgumentParser(prog="python -m mdlib", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run the notebooks of a preset and write a report")
    run.add_argument("preset")
    run.add_argument("--out", type=_path, help="folder of the run (default: reports/PRESET)")
    _add_sets(run)
    part = run.add_mutually_exclusive_group()
    part.add_argument(
        "--from",
        dest="start",
        metavar="STAGE",
        help="run this stage and all after it, even where they are up to date",
    )
    part.add_argument("--only", metavar="STAGE", help="run this stage alone")
    run.set_defaults(command=_run)

    lacks = commands.add_parser(
        "fill", help="run at smoke size what a run lacks up to a stage; what has run stays as it is"
    )
    lacks.add_argument("run", type=_path, help="folder of the run, such as reports/lab")
    lacks.add_argument("stage", metavar="STAGE")
    lacks.set_defaults(command=_fill)

    again = commands.add_parser("report", help="write the report of a finished run again")
    again.add_argument("run", type=_path)
    again.add_argument("--readme", action="store_true", help="also put the results into README.md")
    again.set_defaults(command=_report)

    check = commands.add_parser(
        "check", help="say what a preset needs, what is missing, and what a run takes"
    )
    check.add_argument("preset")
    _add_sets(check)
    check.set_defaults(command=_check)

    fetch = commands.add_parser(
        "fetch", help="download a data set; its licence and terms are printed first"
    )
    fetch.add_argument("dataset", type=_downloadable, help="such as voc2012 or coco")
    fetch.add_argument(
        "--root", type=_path, default=ROOT / "data", help="folder to put it in (default: data)"
    )
    fetch.set_defaults(command=_fetch)

    new = commands.add_parser(
        "predict", help="maps, overlays and COCO JSON for new pictures, from a finished run"
    )
    new.add_argument("images", nargs="+", type=_path, help="picture files, or folders of them")
    new.add_argument(
        "--run", type=_path, required=True, help="folder of the run, such as reports/demo"
    )
    new.add_argument("--out", type=_path, help="where to write (default: RUN/predictions)")
    new.set_defaults(command=_predict)

    pages = commands.add_parser("site", help="the course and a run's executed notebooks as pages")
    pages.add_argument("run", type=_path)
    pages.add_argument(
        "--out",
        type=_path,
        default=ROOT / "reports" / "site",
        help="where to write (default: reports/site)",
    )
    pages.set_defaults(command=_site)
    return parser


def _add_sets(parser: argparse.ArgumentParser) -> None:
    """The option --set, which may be given several times."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="NOTEBOOK.PARAMETER=VALUE", dest="sets"
    )


def _path(text: str) -> Path:
    """A path that is not empty, as `--out "$UNSET"` would be, else argparse's error."""
    if not text.strip():
        raise argparse.ArgumentTypeError("a path must not be empty")
    return Path(text)


def _run_folder(path: Path) -> Path:
    """The absolute path of a run's folder; StoreError where there is no run."""
    from mdlib.core.files import StoreError
    from mdlib.run.place import is_run

    if not is_run(path):
        raise StoreError(
            f"there is no run at {path}: expected a folder such as reports/demo, "
            "which `python -m mdlib run demo` writes"
        )
    return path.resolve()


def _downloadable(name: str) -> str:
    """The name of a data set of which the sources are known, else argparse's error."""
    from mdlib.data.sources import SOURCES

    if name not in SOURCES:
        raise argparse.ArgumentTypeError(
            f"unknown data set {name!r}; expected one of {sorted(SOURCES)}"
        )
    return name


def _run(given: argparse.Namespace) -> int:
    from mdlib.run import pipeline
    from mdlib.run.presets import parse_sets

    return pipeline.run(
        given.preset,
        out=given.out,
        overrides=parse_sets(given.sets),
        start=given.start,
        only=given.only,
    )


def _fill(given: argparse.Namespace) -> int:
    from mdlib.run import pipeline

    return pipeline.fill(given.run.resolve(), given.stage)


def _report(given: argparse.Namespace) -> int:
    from mdlib.core.files import StoreError, read_json
    from mdlib.run.presets import load_preset

    run_dir = _run_folder(given.run)
    match read_json(run_dir / "artifacts" / "run.json"):
        case {"preset": str(name)}:
            preset = load_preset(name)
        case _:
            raise StoreError(f"{run_dir}/artifacts/run.json names no preset")

    from mdlib.run import report

    report.write(run_dir, preset)
    if given.readme:
        report.write_readme(run_dir)
    return DONE


def _check(given: argparse.Namespace) -> int:
    from mdlib.run.presets import load_preset, parse_sets, resolve

    preset = load_preset(given.preset)
    parameters = resolve(preset, parse_sets(given.sets))

    from mdlib.run import preflight  # torch: what is wrong above is told without it

    return WRONG if preflight.check(given.preset, preset, parameters) else DONE


def _fetch(given: argparse.Namespace) -> int:
    from mdlib.data.download import fetch_dataset

    fetch_dataset(given.dataset, given.root)
    return DONE


def _predict(given: argparse.Namespace) -> int:
    run_dir = _run_folder(given.run)

    from mdlib.run import predict

    failed = predict.run(given.images, run_dir=run_dir, out=given.out)
    return WRONG if failed else DONE


def _site(given: argparse.Namespace) -> int:
    run_dir = _run_folder(given.run)

    from mdlib.show import site

    print(f"site: {site.build(run_dir, given.out)[0]}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
