import sys

from gsmae.cli import main

sys.exit(main())
