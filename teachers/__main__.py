"""Commands about teachers.

python -m teachers describe PATH     which family a folder, a hub id or a .safetensors file is, and what it takes
python -m teachers families          the installed families and the pipelines that they take
"""

import argparse
import sys


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code, 2 where the user has something to mend."""
    out = argparse.ArgumentParser(
        prog="python -m teachers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = out.add_subparsers(dest="command", required=True)
    one = commands.add_parser("describe", help="family, schedule, sizes and cost of one teacher, without its weights")
    one.add_argument("path", help='a pipeline folder, a hub id owner/name, a .safetensors file, or "pocket"')
    commands.add_parser("families", help="the installed families and their pipelines")
    args = out.parse_args(arguments)
    from teachers.describe import describe  # torch takes seconds to load, and --help should not
    from teachers.loading.registry import installed

    try:
        if args.command == "describe":
            print(describe(args.path))
        else:
            for name, cls in installed().items():
                print(f"{name:<22} {', '.join(kind.__name__ for kind in cls.pipelines) or 'for use from Python'}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
