"""How tests start one program as two processes that train or score together."""

import sys

LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
"""A script follows, or `-m` and a module; `--standalone` takes a free port, so that two such tests can run at once."""
