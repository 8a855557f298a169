"""Downloads METEOR's data (68 MB), for those who do not `pip install pycocoevalcap`.

    python -m metrics.download
"""

import argparse

from metrics.meteor_data import KNOWN, OWN_FOLDER
from support.commands import run_command
from support.downloads import download

URL = (  # in the repository of the challenge's scripts
    "https://raw.githubusercontent.com/tuetschek/e2e-metrics/"
    "1b9c4d87fd0bbb171ea966741cdc012588581ed4/pycocoevalcap/meteor"
)


def main():
    description = __doc__.split("\n")[0]
    argparse.ArgumentParser("python -m metrics.download", description=description).parse_args()
    for name, (known_size, known_sha256) in KNOWN.items():
        download(f"{URL}/{name}", OWN_FOLDER / name, known_sha256, known_size)
    print(f"METEOR's data are in {OWN_FOLDER}")


if __name__ == "__main__":
    run_command(main)
