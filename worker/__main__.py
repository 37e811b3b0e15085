"""`python -m worker serve`: the worker over plain HTTP."""

import argparse
import sys

from worker.settings import StartupError, read_settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker", description="The worker without the platform.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("serve", help="answer POST /inference and GET /ping on $PORT (8000)")
    parser.parse_args()

    from worker.doors.http import serve  # after the arguments are read, because it imports torch and the web server

    try:
        return serve(read_settings())
    except StartupError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
