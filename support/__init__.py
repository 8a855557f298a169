"""What the lesson is built on: formats, folders, downloads, speed. A learner may skip it."""

import sys

if sys.version_info < (3, 10):
    sys.exit("error: Python 3.10 or later is needed, but this is Python "
             + ".".join(map(str, sys.version_info[:3])))
