"""`python -m sdbatch`."""

from sdbatch.cli import main

raise SystemExit(main())
