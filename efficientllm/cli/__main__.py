"""`python -m efficientllm.cli`."""

from efficientllm.cli import main

raise SystemExit(main())
